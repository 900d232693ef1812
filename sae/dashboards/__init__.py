"""Looking at latents: what each fires on, as data and as one self-contained HTML file.

* `latent_pages`: of every latent how often it fires, its top images and some from its whole range with heat maps,
  classes and groups, nearest texts (CLIP) and neighbours; a `LatentPages`, which saves, loads and reports.
* `dashboard`: these pages as one HTML file that works from disk, for thousands of latents.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "latent_pages": "sae.dashboards.collect",
        "LatentPages": "sae.dashboards.pages",
        "dashboard": "sae.dashboards.page",
        "Dashboard": "sae.dashboards.page",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.dashboards.collect import latent_pages
    from sae.dashboards.page import Dashboard, dashboard
    from sae.dashboards.pages import LatentPages

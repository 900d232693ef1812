"""What is known of latents for looking at them, in a record: tables, heat maps, small pictures.

Everything that a page shows is in it, so a dashboard can be drawn later, elsewhere, without the model or the images.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, UInt8

from mechvis.errors import OutOfRange
from mechvis.record import Record

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

WORDS = {
    "latent": "number of the latent in the dictionary",
    "fires": "images on which it fires (its code is above zero on some row)",
    "images": "images that were looked at",
    "frequency": "share of the images on which it fires, with a 95 % Wilson interval",
    "density": "share of the rows (tokens) on which it fires",
    "prefix": "share of these rows that are CLS, registers or the like, which have no place in the image",
    "mean": "mean activation on the rows on which it fires, with a 95 % interval over images",
    "max": "largest activation",
    "top_class": "the commonest class of the images on which it fires",
    "class_share": "its share of these images, with a 95 % Wilson interval (n: fires)",
    "class_base": "its share of all images",
    "class_mass": "its share of the activation: largest activation of each image, summed",
    "class_share_of_top": "share of the top images that have their commonest class",
    "top_group": "the commonest group of the images on which it fires",
    "group_share": "its share of these images, with a 95 % Wilson interval (n: fires)",
    "group_base": "its share of all images",
    "moran": "Moran's I of the top images' heat maps, mean: 1 smooth, 0 scattered; with a 95 % t interval",
    "moran_n": "top images with a map that varies",
    "kind": "of examples: top, or quantile (drawn from all images on which it fires); of texts: by decoder or by "
    "images; of neighbours: by decoder or by firing together",
    "rank": "0 is the first",
    "image": "position of the image in the set",
    "value": "largest activation of the latent on the image",
    "token": "where it is: position of the token; -1: the site has no tokens",
    "type": "type of this token: cls, register, patch, pooled, ...",
    "peak": "largest activation on the patches: what 255 means in the heat map",
    "quantile": "share of the images on which it fires where it is not stronger, as far as a sample of them tells",
    "class": "name of the class",
    "group": "name of the group",
    "share": "share of the images on which the latent fires",
    "rate": "share of the images of this class or group on which it fires, with a 95 % Wilson interval",
    "neighbour": "another latent that has a page",
    "cosine": "of the two decoder rows; of texts: with the latent, the texts' and images' means taken off",
    "together": "of sampled rows on which either fires, the share on which both do, with a 95 % Wilson interval",
    "both": "sampled rows on which both fire",
    "either": "sampled rows on which one of them fires",
    "text": "a description of the bank",
    "above_chance": "is the cosine above the 95 % quantile of the best text for random directions or images?",
    "id": "name of the image in its source",
    "picture": "position of the small picture; null: no latent shows it",
}


class LatentPages(Record):
    """Pages of latents; see :func:`sae.dashboards.latent_pages`.

    Tables: `latents` (one row each), `examples`, `classes`, `groups`, `neighbours`, `texts`, `images`. Arrays: `maps`
    `[example patch]` in bytes, `histogram` `[latent bin]` with `histogram_edges`, `pictures` (files, one after
    another) with `picture_offsets`.
    """

    KIND = "latent_pages"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across; (0, 0) where rows have no place in the image."""
        down, across = self.facts["grid"]
        return down, across

    def of(self, latent: int) -> dict[str, Any]:
        """Everything on one latent: its row of `latents`, and its rows of every other table, by name.

        Raises:
            OutOfRange: it has no page.
        """
        self._row(latent)
        rows = {
            name: table.filter(pl.col("latent") == latent)
            for name, table in self.tables.items()
            if "latent" in table.columns and name != "latents"
        }
        return {"latent": self.pick(latent=latent), **rows}

    def heat(self, latent: int) -> Float[np.ndarray, "example down across"]:
        """Heat maps of a latent's examples, in the order of the table, in units of activation.

        Raises:
            OutOfRange: it has no page.
        """
        self._row(latent)
        mine = (self.tables["examples"]["latent"] == latent).to_numpy()
        peaks = self.tables["examples"]["peak"].to_numpy()[mine]
        maps = self.arrays["maps"][mine] / 255 * peaks[:, None]
        return maps.reshape(len(maps), *self.grid)

    def picture_file(self, picture: int) -> bytes:
        """A small picture as a JPEG or PNG file."""
        offsets = self.arrays["picture_offsets"]
        if not 0 <= picture < len(offsets) - 1:
            raise OutOfRange(f"picture {picture} does not exist; there are {len(offsets) - 1}.")
        return self.arrays["pictures"][offsets[picture] : offsets[picture + 1]].tobytes()

    def picture(self, image: int) -> UInt8[np.ndarray, "height width channel"]:
        """The small picture of an image of the set.

        Raises:
            OutOfRange: no latent shows it.
        """
        from PIL import Image

        found = self.tables["images"].filter((pl.col("image") == image) & pl.col("picture").is_not_null())
        if not found.height:
            raise OutOfRange(f"image {image} is no example of any latent, so there is no picture of it.")
        return np.asarray(Image.open(io.BytesIO(self.picture_file(found["picture"][0]))).convert("RGB"))

    def figures(self) -> "list[Block]":
        """Panels of the first six latents with patches."""
        from mechvis.plots.unit_panel import unit_panel
        from mechvis.report.blocks import Figure

        found: list[Block] = []
        for latent in self.table.filter(pl.col("fires") > 0)["latent"].head(6).to_list():
            own = self.tables["examples"].filter(pl.col("latent") == latent)
            maps = self.heat(latent)
            parts = {}
            for kind, word in (("top", "top"), ("quantile", "ranged")):
                chosen = (own["kind"] == kind).to_numpy()
                parts[word] = [self.picture(image) for image in own.filter(chosen)["image"].to_list()[:8]]
                parts[f"{word}_values"] = own["value"].to_numpy()[chosen][:8].tolist()
                parts[f"{word}_maps"] = maps[chosen][:8] if maps.size and chosen.any() else None
            drawn = unit_panel(**parts, title=f"latent {latent}")
            found.append(Figure(drawn, "Strongest images, and some from the whole range.", raster=True))
        return found

    def _row(self, latent: int) -> None:
        if latent not in self.table["latent"]:
            some = ", ".join(map(str, self.table["latent"].head(6).to_list()))
            raise OutOfRange(f"latent {latent} has no page; those of {some}, ... have ({self.table.height} in all).")

"""`store.json`: what a store is, which files it has, and what they must contain.

It is written when everything is there, so a folder with a readable manifest is a whole store. The plan inside it
(hashes of model, preprocessing, images and sites; tokens, type, seed) is the one that the ledger of the harvest keeps,
and what a later harvest or repair is compared with.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mechvis import files
from mechvis.errors import BadData, ResultMismatch, StoreCorrupt
from mechvis.store.rows import SiteRows
from mechvis.store.shard import Shard
from mechvis.store.tokens import canonical
from mechvis.sweep_inputs import _identity

NAME, FORMAT, VERSION = "store.json", "mechvis.store", 1
IMAGES = "images.parquet"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store is."""

    plan: dict[str, Any]
    """What identifies the job."""
    images_each: int
    """Images per file."""
    batch: int
    """Images per forward pass, which fixes the last bits."""
    sites: dict[str, SiteRows]
    """What rows are, by site."""
    prefix: tuple[str, ...]
    """Names of the tokens before the patches."""
    grid: tuple[int, int] | None
    """Patches (down, across)."""
    sha256: dict[str, list[str]] = field(repr=False)
    """Checksum of each file, by site, in the order of the images."""
    provenance: dict[str, Any] = field(repr=False)
    """Where it comes from."""

    @property
    def n_images(self) -> int:
        """Images in the store."""
        return self.plan["n_images"]

    @property
    def parts(self) -> list[range]:
        """Images of each file."""
        each = self.images_each
        return [range(start, min(start + each, self.n_images)) for start in range(0, self.n_images, each)]

    @cached_property
    def job(self) -> str:
        """Fingerprint of the plan."""
        return job_of(self.plan)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the content: equal for stores with equal bytes."""
        content = [self.plan, self.images_each, self.sha256]
        return hashlib.sha256(files.canonical_json(content).encode()).hexdigest()[:16]

    def shard(self, folder: Path, site: str, images: range) -> Shard:
        """One file of the store."""
        return Shard(shard_path(folder, self.sites[site], images), self.sites[site], images, self.job)

    def save(self, folder: Path, table: Any) -> None:
        """Write it, with a table of the images beside it."""
        data = io.BytesIO()
        table.write_parquet(data)
        known = {
            "format": FORMAT,
            "version": VERSION,
            "plan": self.plan,
            "images_each": self.images_each,
            "batch": self.batch,
            "sites": {name: {**site.to_json(), "folder": site.folder} for name, site in self.sites.items()},
            "prefix": self.prefix,
            "grid": self.grid,
            "sha256": self.sha256,
            "provenance": self.provenance,
        }
        files.write_together(folder, {IMAGES: data.getvalue()}, NAME, known)


def load(folder: str | Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        BadData: there is no store, an unfinished one, or one of a newer version.
        StoreCorrupt: the manifest is damaged.
    """
    folder = Path(folder)
    if not (folder / NAME).exists():
        if (folder / "pieces" / "plan.json").exists():
            raise BadData(f"{folder} is not finished: the same harvest (or `mechvis harvest`) continues it.")
        raise BadData(f"{folder} holds no store of activations (no {NAME}).")
    known = files.read_manifest(folder, NAME, _check_format)
    try:
        return Manifest(
            plan=known["plan"],
            images_each=known["images_each"],
            batch=known["batch"],
            # JSON keeps keys in the order of the alphabet; the plan has the order in which the sites fire.
            sites={name: SiteRows.from_json(known["sites"][name]) for name in known["plan"]["sites"]},
            prefix=tuple(known["prefix"]),
            grid=None if known["grid"] is None else tuple(known["grid"]),
            sha256=known["sha256"],
            provenance=known["provenance"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"{folder / NAME} lacks something that a store has: {error!r}.") from error


def plan_of(model: Any, images: Any, sites: Mapping[str, SiteRows], *, tokens: str | int, seed: int) -> dict[str, Any]:
    """What identifies a store: hashes of what goes in, and what is kept of it."""
    preprocess = getattr(model, "preprocess", None) if hasattr(images, "pixels_for") else None
    return {
        "kind": "activations",
        "model": model.fingerprint,
        "preprocess": None if preprocess is None else preprocess.fingerprint,
        "images": _identity(images),
        "n_images": len(images),
        "sites": list(sites),
        "site_hashes": [site.fingerprint for site in sites.values()],
        "tokens": canonical(tokens),
        "dtype": next(iter(sites.values())).dtype,
        "seed": seed,
    }


def job_of(plan: Mapping[str, Any]) -> str:
    """Fingerprint of a plan."""
    return hashlib.sha256(files.canonical_json(plan).encode()).hexdigest()[:16]


def refuse_other(plan: Mapping[str, Any], kept: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model and images that are not those of a store.

    Raises:
        ResultMismatch: says in what they differ.
    """
    plan = files.plain_json(plan)
    differ = [key for key in {**kept, **plan} if kept.get(key) != plan.get(key)]
    if differ:
        told = "; ".join(f"{key}: there {kept.get(key)!r}, now {plan.get(key)!r}" for key in differ[:3])
        raise ResultMismatch(f"{folder} was made from something else; it differs in: {', '.join(differ)}. {told}.")


def shard_path(folder: Path, site: SiteRows, images: range) -> Path:
    """Where the rows of a site for some images lie."""
    return folder / "shards" / site.folder / f"images-{images.start:08d}-{images.stop:08d}.safetensors"


def _check_format(manifest: dict) -> None:
    if manifest.get("format") != FORMAT:
        raise StoreCorrupt(f"this is a manifest of {manifest.get('format')!r}, not of a store of activations.")
    if manifest.get("version") != VERSION:
        raise BadData(
            f"this store has version {manifest.get('version')!r}; this mechvis reads version {VERSION}. Upgrade it."
        )

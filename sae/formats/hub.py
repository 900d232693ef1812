"""Dictionaries on the Hugging Face Hub: safetensors, `cfg.json`, and a page that says what they are.

Pushed is our own layout (`sae.Dictionary.save`) with a `README.md`, or another format's files. Pulled is any layout
that `sae.formats.load` knows. Needs `huggingface_hub`, which comes with transformers; it is imported when it is used.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechvis import files
from mechvis.errors import BadData, MissingPackage, StoreCorrupt

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

CARD = "README.md"
READ = ("*.json", "*.safetensors", "*.pt", "*.pth", "*.npz")
"""Files that are pulled."""


def push(
    dictionary: "Dictionary",
    repo: str,
    *,
    format: str = "mechvis",
    folder: str = "",
    text: str = "",
    private: bool = True,
    token: str | None = None,
) -> str:
    """Upload a dictionary with its card.

    Args:
        dictionary: what to upload.
        repo: `owner/name`; made if it is not there.
        format: of `sae.formats.FORMATS`.
        folder: inside the repository; for several dictionaries in one.
        text: what you want to say on its page: data, licence, limits.
        private: whether a repository that is made is private.
        token: of the Hub; None: the one you are logged in with.

    Returns:
        Where it is.

    Raises:
        BadData: no `owner/name`.
        MissingPackage: without `huggingface_hub`.
        RefusedMethod, NotFinite: see `sae.formats.save`.
    """
    from sae.formats.convert import save

    hub = _hub()
    _require_name(repo)
    with tempfile.TemporaryDirectory() as temporary:
        save(dictionary, temporary, format=format)
        files.write_text(Path(temporary) / CARD, card(dictionary, repo, format=format, folder=folder, text=text))
        api = hub.HfApi(token=token)
        api.create_repo(repo_id=repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=temporary,
            path_in_repo=folder or ".",
            commit_message=f"A {dictionary.architecture.NAME} dictionary of {dictionary.n_latents} latents",
        )
    return str(done)


def pull(
    repo: str,
    *,
    folder: str = "",
    format: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    **told: Any,
) -> "Dictionary":
    """Download a dictionary of any known format.

    Args:
        repo: `owner/name`.
        folder: inside the repository.
        format: of `sae.formats.FORMATS`; None: told from the files.
        revision: commit, branch or tag; what was downloaded is in the provenance.
        token: of the Hub.
        **told: `k`, `threshold`, `architecture`, as for `sae.formats.load`.

    Raises:
        BadData: no `owner/name`, a folder outside it, or files that are not read.
        MissingPackage: without `huggingface_hub`.
        StoreCorrupt: nothing is there.
    """
    from sae.formats.convert import load

    hub = _hub()
    _require_name(repo)
    if ".." in Path(folder).parts or Path(folder).is_absolute():
        raise BadData(f"folder={folder!r} is a place inside the repository.")
    patterns = [f"{folder.rstrip('/')}/{name}" if folder else name for name in READ]
    deeper = f"{folder.rstrip('/')}/*/*" if folder else "*/*"  # other dictionaries of the same repository
    local = Path(
        hub.snapshot_download(
            repo_id=repo, revision=revision, allow_patterns=patterns, ignore_patterns=[deeper], token=token
        )
    )
    if not (local / folder).is_dir():
        raise StoreCorrupt(f"{repo} has no folder {folder!r} with files of a dictionary.")
    found = load(local / folder, format, **told)
    found.provenance |= {"hub": repo, "folder": folder, "revision": revision or local.name}
    return found


def card(dictionary: "Dictionary", repo: str, *, format: str = "mechvis", folder: str = "", text: str = "") -> str:
    """The text of `README.md`.

    Args:
        dictionary: what it is about.
        repo: where it will be.
        format: of its files.
        folder: inside the repository.
        text: what its author says.

    Example:
        >>> import torch, sae
        >>> rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2), {"blocks.2.hook_resid_post": rows})
        >>> print(card(d, "me/my-sae").splitlines()[7])
        # topk autoencoder, 16 latents
    """
    a, ends = dictionary.architecture, dictionary.ends
    where = f'"{repo}"' + (f', folder="{folder}"' if folder else "")
    settings = "\n".join(f"| {name} | `{value}` |" for name, value in a.to_json().items())
    known = {k: v for k, v in dictionary.provenance.items() if isinstance(v, str | int | float | bool)}
    provenance = "\n".join(f"| {name} | `{str(value)[:200]}` |" for name, value in known.items())
    lines = [
        "---",
        "library_name: mechvis",
        "tags:",
        "- sparse-autoencoder",
        "- mechanistic-interpretability",
        "---",
        "",
        f"# {a.NAME} {ends.kind}, {dictionary.n_latents} latents",
        "",
        f"Reads {_told(ends.reads)}" + (f"; writes {_told(ends.writes)}." if ends.transcodes else "."),
        f"Rows are scaled inside (`normalise={a.normalise!r}`): give activations as the model has them.",
        f"Files are of the format `{format}`; fingerprint `{dictionary.fingerprint}`.",
        "",
        "```python",
        "import sae",
        f"d = sae.formats.pull({where})",
        "codes = d.encode(rows); written = d.decode(codes, like=rows)",
        "```",
        "",
        *([text.strip(), ""] if text.strip() else []),
        "| setting | value |",
        "|---|---|",
        settings,
        *(["", "| where it is from | |", "|---|---|", provenance] if known else []),
        "",
        "How well it reconstructs, and whether its latents mean anything, is not said here: measure it on your data "
        "with `mechvis sae eval`.",
        "",
    ]
    return "\n".join(lines)


def _told(sites: Any) -> str:
    return ", ".join(f"`{name}` ({width} columns)" for name, width in sites.items())


def _require_name(repo: str) -> None:
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise BadData(f"repo={repo!r} is not owner/name.")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingPackage(
            "the Hub needs huggingface_hub, which comes with transformers: pip install huggingface_hub."
        ) from error
    return huggingface_hub

"""Where the published checkpoints are."""

PUBLISHED = {
    "mimic_iv_ecg_physionet_pretrained": "wanglab/ecg-fm",
    "mimic_iv_ecg_finetuned": "wanglab/ecg-fm",
    "physionet_finetuned": "wanglab/ecg-fm-preprint",
}
ECG_FM_CITATION = """\
@article{mckeen2025ecgfm,
  title   = {{ECG-FM}: an open electrocardiogram foundation model},
  author  = {McKeen, Kaden and Masood, Sameer and Toma, Augustin and Rubin, Barry and Wang, Bo},
  journal = {JAMIA Open},
  volume  = {8},
  number  = {5},
  pages   = {ooaf122},
  year    = {2025},
  doi     = {10.1093/jamiaopen/ooaf122},
  note    = {arXiv:2408.05178}
}"""


def published_link(name: str) -> str:
    """A published checkpoint, with a link to its repository on the Hub."""
    repository = PUBLISHED.get(name)
    where = "" if repository is None else f" of [{repository}](https://huggingface.co/{repository})"
    return f"`{name}.pt`{where}"

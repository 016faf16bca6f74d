"""
Cuts the reference data (outputs of the original code) into the small files under `tests/fixtures/golden`.

    python scripts/make_fixtures.py --shared PATH

PATH holds `golden/` and `data/`. Inputs are not stored with every case: all are built from ten CODE-15% segments, so a
case names its segments and lengths, and this script checks that they give exactly the input that the original saw.
Needs scipy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import scipy.io

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from goldens import FIXTURES, build_source  # noqa: E402

SEGMENT_FILES = ("segments_a", "segments_b")
VARIANTS = ("ln_first", "conv_bias", "latent_dim", "extractor_ln")
LOSS_PARTS = """
    loss sample_size neg_idxs mask_indices patient_id segment prob_perplexity code_perplexity correct count
    loss_0_infonce_sum loss_1_diversity_term loss_2_features_pen_term loss_3_cmsc_term loss_0 loss_1 loss_2 loss_3
"""
# By case: what to keep of the original's outputs; `prefix*` keeps all that begins so.
CASES = {
    "tiny/a_finetune_eval": "out pooled encoder_out attn h_encoder_layer_norm h_layer0",
    "tiny/a2_notebook_emb_saliency": "embs attn_max",
    "tiny/b_finetune_padded": "out pooled encoder_out frame_padding_mask out_alone attn",
    "tiny/c_finetune_lengths": "out_* pooled_* encoder_out_33 encoder_out_2501",
    "tiny/c_finetune_zero_input": "out pooled",
    "tiny/d_pretrain_features": "x features quant_x quant_targets quant_code_perplexity quant_prob_perplexity padded_x "
    "padded_features padded_frame_mask",
    "tiny/e_pretrain_eval_loss": " ".join(p + part for p in ("", "shared_", "one_") for part in LOSS_PARTS.split()),
    "tiny/e_pretrain_eval_loss_padded": LOSS_PARTS,
    "tiny/f_pretrain_train_grads": LOSS_PARTS + " gumbel_noise temp grad.* after_step.*",
    "tiny/g_mask_indices": "base_seed* tiny3_seed* p30_l5_seed* long_seed* pad_seed* pad_short_seed* "
    "low_prob_min_masks_seed* short_T_seed* channel_seed*",
    "tiny/k_finetune_train_step": "out label loss sample_size pos_weight grad.* after_step.*",
    **{
        f"variants/{name}": "x features padded_x cls_out cls_encoder_out cls_padded_out cls_attn " + LOSS_PARTS
        for name in VARIANTS
    },
    **{
        f"full/full_{size}_{kind}": keep
        for size in ("base", "large")
        for kind, keep in (
            ("classifier17", "out pooled encoder_out_first8 padded_out padded_pooled padded_encoder_out_first8"),
            ("pretrain", "x_first8 features_first8 " + LOSS_PARTS),
        )
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--shared", type=Path, required=True)
    shared = parser.parse_args().shared

    segments = {
        path.stem.removeprefix("code_15_"): scipy.io.loadmat(path)["feats"].astype(np.float32)
        for path in sorted((shared / "data/code_15/segmented").glob("*.mat"))
    }
    needed: set[str] = set()
    for case, keep in CASES.items():
        golden = np.load(shared / f"golden/{case}.npz")
        kept = _outputs(golden, keep.split())
        for key in golden.files:
            if "source" in key:
                recipe = _recipe(golden[key], segments)
                needed |= {name for row in recipe for name in row.split("|")[0].split("+")}
                kept[key] = np.array(recipe)
                if not np.array_equal(build_source(recipe, segments), golden[key]):
                    raise SystemExit(f"{case}: {key} cannot be rebuilt from segments")
        path = FIXTURES / f"{case.replace('/', '_')}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **kept)
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1000:.0f} KB")
    names = sorted(needed)
    for i, file in enumerate(SEGMENT_FILES):
        np.savez_compressed(
            FIXTURES / f"{file}.npz", **{name: segments[name] for name in names[i :: len(SEGMENT_FILES)]}
        )


def _outputs(golden: np.lib.npyio.NpzFile, keep: list[str]) -> dict[str, np.ndarray]:
    kept = {}
    for key in golden.files:
        if "source" in key or not any(key == k or (k.endswith("*") and key.startswith(k[:-1])) for k in keep):
            continue
        value = golden[key]
        if key.endswith("neg_idxs"):
            # Flat positions over the whole batch to positions within the segment.
            mask = key.replace("neg_idxs", "mask_indices")
            masked = golden[mask if mask in golden.files else "mask_indices"].sum(axis=1)[0]
            offsets = np.arange(len(value))[:, None] * masked
            value = (value - offsets).reshape(len(value), masked, -1).astype(np.uint8)
        elif key in ("attn", "cls_attn"):
            value = value[:1]  # Maps are large: the first segment's.
        kept[key] = value
    return kept


def _recipe(source: np.ndarray, segments: dict[str, np.ndarray]) -> list[str]:
    """One line per row: `segment[+segment]|samples|zeroed lead`; what is not named is zero."""
    rows = []
    for row in source:
        active = np.nonzero(np.abs(row).sum(axis=0))[0]
        length = int(active[-1]) + 1 if len(active) else 0
        dead = [lead for lead in range(len(row)) if not row[lead].any()] if length else []
        for name, signal in _candidates(segments):
            leads = [lead for lead in range(len(row)) if lead not in dead]
            if length <= signal.shape[1] and np.array_equal(signal[leads, :length], row[leads, :length]):
                rows.append(f"{name}|{length}/{source.shape[2]}|{','.join(map(str, dead))}")
                break
        else:
            raise SystemExit("an input is not made of known segments")
    return rows


def _candidates(segments: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    joined = [
        (f"{name}+{name[:-1]}1", np.concatenate([segments[name], segments[f"{name[:-1]}1"]], axis=1))
        for name in segments
        if name.endswith("_0") and f"{name[:-1]}1" in segments
    ]
    return [*segments.items(), *joined]


if __name__ == "__main__":
    main()

"""Rows that DistillKit wrote, compressed or not."""

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

from hf_distill import add_teacher_targets, import_teacher_targets
from hf_distill.training.teacher.columns import source_of
from hf_distill.training.teacher.importing.distillkit import Decompressor
from tests.conftest import PAD, make_text_tokenizer
from tests.training.teacher.importing.test_tokens import OPTIONS, STUDENT, TEACHER, log_probs_of
from tests.training.teacher.test_targets import losses, make_dataset, train

TOKENIZER = make_text_tokenizer()

WITH_BINS = {
    "d": 61,
    "k": 7,
    "exact_k": 2,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, "sqrt"],
    "term_dtype": "float32",
    "delta_encoding": True,
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 5, "num_elements": 3},
        {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 1},
    ],
}
NORMALISED = {
    "d": 61,
    "k": 7,
    "exact_k": 1,
    "exact_dtype": "float16",
    "polynomial_terms": [0, 2, "exp"],
    "term_dtype": "bfloat16",
    "residual_bins": [],
    "delta_encoding": False,
    "normalize_t": True,
}
IDS = [60, 5, 17, 33, 8, 42, 11]
PACKED_IDS = [240, 84, 97, 34, 162, 192]
WRITTEN = [
    (
        WITH_BINS,
        [0, 191, 128, 191, 160, 205, 128, 191, 237, 48, 82, 191, 71, 59, 161, 63, 33, 38, 132, 192, 10, 63, 128],
        [-0.5, -1.5, -2.5, -3.0, -4.25, -5.0, -6.78125],
    ),
    (
        NORMALISED,
        [0, 184, 184, 63, 91, 58, 67, 192],
        [-0.5, -1.609375, -2.28125, -3.09375, -4.125, -5.375, -6.875],
    ),
]
"""For a config, the bytes that DistillKit (commit a61c2e7) writes for the log-probabilities -0.5, -1.5, -2.5, -3,
-4.25, -5 and -7, and the numbers that it reads from them. It rounds these to `exact_dtype`."""


@pytest.mark.parametrize(("config", "written", "expected"), WRITTEN)
def test_bytes_that_distillkit_wrote(config, written, expected):
    ids, log_probs = Decompressor(config)([written] * 3, [PACKED_IDS] * 3)
    assert ids.tolist() == [IDS] * 3
    assert log_probs == pytest.approx(np.array([expected] * 3), abs=0.02)


def test_a_row_without_a_distribution():
    ids, log_probs = Decompressor(NORMALISED)([], [])
    assert ids.shape == log_probs.shape == (0, 7)


EXACT = {"d": 61, "k": 6, "exact_k": 6, "exact_dtype": "float32", "residual_bins": [], "delta_encoding": False}


def rows_of(dataset, compressed, pad=True):
    """What DistillKit writes: a text without padding gets one more token, so that its last token has a distribution."""
    rows = []
    for row in dataset:
        log_probs, ids = log_probs_of(row).topk(6)
        if not pad:
            log_probs, ids = log_probs[:-1], ids[:-1]
        bits = (ids.unsqueeze(-1).numpy() >> np.arange(5, -1, -1)) & 1
        own = {"input_ids": [*row["input_ids"], *[PAD] * pad]}
        if compressed:
            own["compressed_logprobs"] = log_probs.numpy().view(np.uint8).tolist()
            own["bytepacked_indices"] = np.packbits(bits.reshape(len(ids), -1), axis=1).tolist()
        else:
            own |= {"top_values": log_probs.tolist(), "token_ids": ids.tolist()}
        rows.append(own)
    return rows


@pytest.mark.parametrize("compressed", [True, False])
def test_a_folder_of_distillkit_teaches_what_its_model_teaches(make_trainer, tmp_path, compressed):
    dataset = make_dataset("causal", num_rows=12)
    rows = rows_of(dataset, compressed)
    for part in range(12):
        Dataset.from_list(rows[part : part + 1]).to_parquet(tmp_path / f"data_{part}.parquet")
    if compressed:
        (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(EXACT))
    ours = import_teacher_targets(
        dataset, tmp_path, format="distillkit", teacher="DistillKit", processing_class=TOKENIZER
    )
    stored = add_teacher_targets(dataset, TEACHER, TOKENIZER, top_k=6, temperature=1.0, min_mass=0.0)
    assert source_of(ours).complete
    for positions in ("labels", "attended"):
        trained = [
            losses(train(make_trainer, STUDENT, None, data, **OPTIONS, kl_positions=positions))
            for data in (ours, stored)
        ]
        assert trained[0] == pytest.approx(trained[1], rel=1e-5)


def test_columns_of_the_dataset_itself():
    """The rows of DistillKit are the dataset. The last token has no distribution."""
    rows = Dataset.from_list(rows_of(make_dataset("causal", num_rows=4), compressed=True, pad=False))
    ours = import_teacher_targets(
        rows,
        format="distillkit",
        teacher="DistillKit",
        processing_class=TOKENIZER,
        compression={"logprob_compressor": EXACT},
        top_k=3,
    )
    assert not source_of(ours).complete
    for row in ours:
        expected = log_probs_of(row).topk(3)[0][:-1]
        given = torch.tensor(row["teacher_top_log_probs"]).reshape(-1, 3)[:-1]
        torch.testing.assert_close(given, expected.float(), rtol=2**-11, atol=1e-6)


def imported(rows, targets, **options):
    return import_teacher_targets(
        rows, targets, format="distillkit", teacher="x", processing_class=TOKENIZER, **options
    )


def test_what_does_not_fit():
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]]})
    values = {"token_ids": [[6, 8], [7, 9]], "top_values": [[-1.0, -2.0], [-1.0, -3.0]]}
    assert len(imported(rows, [values])) == 1
    with pytest.raises(ValueError, match="Row 0 has other input_ids in the dataset than in the targets"):
        imported(rows, [{**values, "input_ids": [5, 8, 7]}])
    with pytest.raises(ValueError, match=r"Row 0 has 3 tokens, but token ids \[1, 2\] and values \[1, 2\]"):
        imported(rows, [{name: own[:1] for name, own in values.items()}])
    with pytest.raises(ValueError, match=r"Row 0 has 3 tokens, but token ids \[2, 2\] and values \[1, 2\]"):
        imported(rows, [{**values, "top_values": values["top_values"][:1]}])
    with pytest.raises(
        ValueError, match=r"Row 0 has the columns packed_indices, exact_values, coeffs: .*cannot be imp"
    ):
        imported(rows, [{"packed_indices": [], "exact_values": [], "coeffs": []}])
    with pytest.raises(ValueError, match="Row 0 has a token id twice at token 1"):
        imported(rows, [{**values, "token_ids": [[6, 8], [7, 7]]}])
    compressed = {"compressed_logprobs": [[0] * 24] * 2, "bytepacked_indices": [[0] * 5] * 2}
    with pytest.raises(ValueError, match=r"Row 0 has the columns compressed_logprobs.*compression='compression_config"):
        imported(rows, [compressed])
    with pytest.raises(
        ValueError, match="Row 0: compressed_logprobs has 23 bytes per token, but compression describes 24"
    ):
        imported(rows, [{**compressed, "compressed_logprobs": [[0] * 23] * 2}], compression=EXACT)
    with pytest.raises(ValueError, match="Row 0 is a list: format='distillkit' takes rows with columns"):
        imported(rows, [[0.5]])
    with pytest.raises(ValueError, match="compression lacks d, exact_k: pass the logprob_compressor config"):
        imported(rows, [compressed], compression={"k": 5})
    with pytest.raises(ValueError, match=r"Row 0 has probabilities that sum to 1.1 at token 0"):
        imported(rows, [{**values, "top_values": [[np.log(0.6), np.log(0.5)], [-1.0, -3.0]]}])
    with pytest.raises(ValueError, match="compression would have no effect with format='prompt_logprobs'"):
        import_teacher_targets(
            rows, [[]], format="prompt_logprobs", teacher="x", processing_class=TOKENIZER, compression=EXACT
        )

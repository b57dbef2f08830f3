"""The influence of each layer against numpy in float64, row by row without padding, and the choice that follows."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hf_distill import make_student
from hf_distill.student.architectures import example_inputs, find_layer_stacks
from hf_distill.student.calibration import inputs_of
from hf_distill.student.influence import block_influence
from tests.conftest import collate, make_model, make_rows
from tests.student.tiny_models import TYPES, tiny_config, tiny_model


def batches(head, num_rows=8):
    """Two batches of rows with different lengths."""
    rows = make_rows(head, num_rows)
    rows = [row for row in rows if head != "seq2seq" or row["labels"]]
    return [collate(rows[: num_rows // 2]), collate(rows[num_rows // 2 :])]


def influence_of(model, data):
    return block_influence(model, find_layer_stacks(model), inputs_of(model, data))


def states_of(model, stack, inputs):
    """Hidden states before and after each layer of a stack."""
    states = {}

    def record(layer, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        states[layer] = [before, output[0] if isinstance(output, tuple) else output]

    layers = list(model.get_submodule(stack.path))
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return [[state.numpy().astype(np.float64) for state in states[layer]] for layer in layers]


def cosines(before, after):
    return (before * after).sum(-1) / np.sqrt((before**2).sum(-1) * (after**2).sum(-1))


def rows_without_padding(batch):
    """The rows of a batch as batches of one, or of one text if a row has several."""
    names = [name for name in batch if not name.startswith(("labels", "start_", "end_"))]
    texts = {name: batch[name].flatten(0, -2) if batch[name].ndim == 3 else batch[name] for name in names}
    for index in range(len(texts[names[0]])):
        row = {name: values[index : index + 1] for name, values in texts.items()}
        for prefix in ("", "decoder_"):
            if f"{prefix}attention_mask" in row:
                length = int(row[f"{prefix}attention_mask"].sum())
                both = [f"{prefix}{name}" for name in ("input_ids", "attention_mask")]
                row |= {name: row[name][:, :length] for name in both}
        yield {name: values[None] for name, values in row.items()} if batch[names[0]].ndim == 3 else row


@pytest.mark.parametrize(
    ("head", "model_type"),
    [
        ("classification", "bert"),
        ("multiple_choice", "bert"),
        ("question_answering", "distilbert"),
        ("mlm", "roberta"),
        ("causal", "gpt2"),
        ("causal", "llama"),
        ("seq2seq", "t5"),
        ("seq2seq", "bart"),
        ("image", "vit"),
    ],
)
def test_values(head, model_type):
    model, data = make_model(model_type, head), batches(head)
    data = [{**batch, **decoder_inputs(model, batch)} for batch in data]
    found = influence_of(model, data)
    for name, stack in find_layer_stacks(model).items():
        whole = data if head == "image" else [row for batch in data for row in rows_without_padding(batch)]
        of_rows = [states_of(model, stack, without_labels(row)) for row in whole]
        for index in range(stack.num_layers):
            every = np.concatenate([cosines(*states[index]).flatten() for states in of_rows])
            assert found[name][index] == pytest.approx(1 - every.mean(), abs=1e-6)
        assert len(found[name]) == stack.num_layers
        assert max(found[name]) > 1.01 * min(found[name]) > 0


def decoder_inputs(model, batch):
    if not model.config.is_encoder_decoder:
        return {}
    tokens = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return {"decoder_input_ids": tokens, "decoder_attention_mask": (batch["labels"] != -100).long()}


def without_labels(batch):
    return {name: value for name, value in batch.items() if not name.startswith(("labels", "start_", "end_"))}


def test_values_of_audio():
    """Positions of padding do not count: how many there are follows from the convolutions."""
    model, data = make_model("wav2vec2", "audio"), batches("audio")
    (stack,) = find_layer_stacks(model).values()
    (found,) = influence_of(model, data).values()
    all_cosines = [[] for _ in found]
    for batch in data:
        lengths = batch["attention_mask"].sum(1)
        for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        for index, (before, after) in enumerate(states_of(model, stack, without_labels(batch))):
            assert before.shape[1] == max(lengths) > min(lengths)
            all_cosines[index] += [
                cosine
                for row, length in zip(cosines(before, after), lengths, strict=True)
                for cosine in row[:length].tolist()
            ]
    assert found == pytest.approx([1 - np.mean(own) for own in all_cosines], abs=1e-6)


def test_values_of_transposed_states():
    """SqueezeBERT's layers work on `[batch, width, length]`."""
    model = tiny_model("squeezebert")
    inputs = without_labels(collate(make_rows("mlm", 6), 19))  # another length than the width
    states = model(**inputs, output_hidden_states=True).hidden_states
    states = [state.detach().numpy().astype(np.float64)[inputs["attention_mask"].bool()] for state in states]
    expected = [1 - cosines(before, after).mean() for before, after in itertools.pairwise(states)]
    assert influence_of(model, [inputs])["layers"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "longformer", "squeezebert", "llama"])
def test_padding_does_not_count(model_type):
    # SqueezeBERT's positions and channels can be told apart if no text has the length of the width.
    width = {"hidden_size": 24, "embedding_size": 24} if model_type == "squeezebert" else {}
    model, rows = tiny_model(model_type, **width), make_rows("mlm", 6)
    (short,) = influence_of(model, [collate(rows)]).values()
    (padded,) = influence_of(model, [collate(rows, 27)]).values()
    (one_by_one,) = influence_of(model, [collate([row]) for row in rows]).values()
    assert padded == pytest.approx(short, abs=1e-5)
    assert one_by_one == pytest.approx(short, abs=1e-5)


@pytest.mark.parametrize("form", ["of packed documents", "additive"])
def test_masks_of_packed_documents(form):
    """A position counts if it attends to itself."""
    model, batch = make_model("bert", "mlm"), without_labels(collate(make_rows("mlm", 6)))
    mask = batch["attention_mask"].bool()
    pairs = (mask[:, :, None] & mask[:, None, :])[:, None]
    if form == "additive":
        pairs = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)
    found = influence_of(model, [{**batch, "attention_mask": pairs}])
    assert found["layers"] == pytest.approx(influence_of(model, [batch])["layers"], abs=1e-6)


def test_text_and_images_have_their_own_positions():
    """CLIP's mask is of the text: the image has as many positions, all of them attended."""
    model = tiny_model("clip")
    tokens = torch.randint(5, 60, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with_padding = influence_of(model, [{"input_ids": tokens, "attention_mask": mask, "pixel_values": images}])
    without = influence_of(model, [{"input_ids": tokens, "pixel_values": images}])
    assert with_padding["vision"] == without["vision"]
    assert with_padding["text"] != without["text"]


def test_many_types():
    """Each layer of every type is measured, and the student of 2 layers keeps the two with the highest influence."""
    types = [model_type for types in TYPES.values() for model_type in types]
    assert len(types) == 71
    of_all = {}
    for model_type in types[::6]:
        model = tiny_model(model_type)
        torch.manual_seed(0)
        data = [example_inputs(model)]
        of_all[model_type] = influence_of(model, data)
        student = make_student(model, 2, "influence", calibration_data=data)
        kept = student.config.distilled_from["layers"]
        for name, influence in of_all[model_type].items():
            best = sorted(np.argsort(influence)[-2:].tolist())
            assert (kept[name] if isinstance(kept, dict) else kept) == best, model_type
    assert len(of_all) == 12


def without_effect(teacher, index):
    """Makes a layer of BERT without effect: zeroed branches, and norms that change nothing that is normed already."""
    for name in ("attention.output", "output"):
        dense = teacher.bert.encoder.layer[index].get_submodule(name).dense
        dense.weight.data.zero_()
        dense.bias.data.zero_()


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_layer_without_effect_goes_first(index, caplog):
    teacher = make_model("bert", "classification")
    without_effect(teacher, index)
    data = batches("classification")
    assert influence_of(teacher, data)["layers"][index] == pytest.approx(0, abs=1e-6)
    with caplog.at_level("INFO", logger="hf_distill"):
        student = make_student(teacher, 3, "influence", calibration_data=iter(data))
    assert student.config.distilled_from["layers"] == [other for other in range(4) if other != index]
    assert student.config.distilled_from["method"] == "influence"
    assert "Kept layers" in caplog.text


def test_several_stacks():
    """Each stack has its own strategy. The batches are read once, also from a generator."""
    teacher, data = make_model("t5", "seq2seq", num_layers=3), batches("seq2seq")
    influence = influence_of(teacher, data)
    student = make_student(teacher, 1, "influence", calibration_data=data)
    kept = student.config.distilled_from["layers"]
    assert kept == {name: [int(np.argmax(values))] for name, values in influence.items()}
    layers = {"encoder": "influence", "decoder": "calibrated"}
    mixed = make_student(teacher, 1, layers, calibration_data=(batch for batch in data))
    assert mixed.config.distilled_from["layers"]["encoder"] == kept["encoder"]
    assert mixed.config.distilled_from["method"] == layers
    only = make_student(teacher, 1, {"decoder": "influence", "encoder": "last"}, calibration_data=data)
    assert only.config.distilled_from["layers"] == {"encoder": [1], "decoder": kept["decoder"]}


def test_layers_that_cannot_go():
    """ModernBERT's first layer has no norm before its attention. It stays, whatever its influence."""
    teacher = tiny_model("modernbert")
    for layer in (teacher.model.layers[0].attn.Wo, teacher.model.layers[0].mlp.Wo):
        layer.weight.data.zero_()
    data = [{"input_ids": torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))}]
    influence = influence_of(teacher, data)["layers"]
    assert np.argmin(influence) == 0
    student = make_student(teacher, 1, "influence", calibration_data=data)
    assert student.config.distilled_from["layers"] == [0]


def test_teacher_and_random_state_are_untouched():
    teacher = make_model("bert", "mlm", dropout=0.5).train()
    weights = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    state = torch.get_rng_state()
    make_student(teacher, layers="influence", calibration_data=batches("mlm"))
    assert teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in teacher.state_dict().items())
    assert all("forward" not in vars(module) for module in teacher.modules())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, ValueError, r"calibration_data is missing, but layers=\['influence'\]: use both together"),
        ([], ValueError, "calibration_data is empty"),
        ([{"labels": torch.ones(2)}], ValueError, "has labels, but BertForMaskedLM needs input_ids: tokenize"),
        (["a text"], TypeError, "contains 'a text'"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        make_student(make_model("bert", "mlm"), layers="influence", calibration_data=data)


def test_data_without_a_strategy_that_reads_it():
    with pytest.raises(ValueError, match=r"calibration_data is given, but layers=\['first'\]"):
        make_student(make_model("bert", "mlm"), layers="first", calibration_data=batches("mlm"))


def test_hidden_states_that_are_not_finite():
    teacher = make_model("bert", "mlm")
    teacher.bert.encoder.layer[2].output.LayerNorm.bias.data[7] = torch.inf
    with pytest.raises(ValueError, match="has NaN or infinite hidden states on calibration_data"):
        make_student(teacher, layers="influence", calibration_data=batches("mlm"))


def test_a_stack_that_is_not_run():
    """LLaVA runs its image tower only on batches with images."""
    parts = {"vision_config": tiny_config("clip_vision_model"), "text_config": tiny_config("llama")}
    teacher = LlavaForConditionalGeneration(LlavaConfig(**parts, image_token_id=4)).eval()
    data = batches("causal")
    with pytest.raises(ValueError, match="does not pass through layer 0 of the stack 'vision'"):
        make_student(teacher, layers="influence", calibration_data=data)
    student = make_student(teacher, layers={"text": "influence"}, calibration_data=data)
    assert len(student.config.distilled_from["layers"]["text"]) == 2


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="num_layers=5, but the teacher has 4 layers"):
        make_student(make_model("bert", "mlm"), 5, "influence", calibration_data=batches("mlm"))

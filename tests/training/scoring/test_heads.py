"""Scored positions of a batch, by hand, for each kind of head."""

import math

import pytest
import torch
from transformers import AutoModel, pipeline

from hf_distill import make_student
from hf_distill.training.scoring import find_head as finding
from hf_distill.training.scoring.find_head import auto_class_of, find_head, is_exported, pipeline_tag_of
from hf_distill.training.scoring.heads import Head, NoHead
from hf_distill.training.scoring.inputs import decoder_input_ids_of
from hf_distill.training.scoring.token_heads import CausalLMHead, MaskedLMHead, PermutedLMHead, Seq2SeqLMHead
from tests.conftest import (
    AUTO_CLASSES,
    FAMILY_OF_HEAD,
    HEADS,
    collate,
    make_config,
    make_model,
    make_rows,
    make_text_tokenizer,
)
from tests.families.tiny import build


def head_of(kind, **overrides):
    return find_head(make_model(FAMILY_OF_HEAD.get(kind, "bert"), kind, **overrides))


INPUTS = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
ATTENDED = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)


def scored_of(kind, *arguments, inputs=INPUTS, **labels):
    labels = {name: torch.tensor(label) for name, label in labels.items()}
    return head_of(kind).score({**inputs, **labels}, *arguments)


def as_list(mask):
    return mask.int().tolist()


def test_classification():
    scored = scored_of("classification", labels=[1, -100])
    assert scored.attended.equal(ATTENDED)
    assert (as_list(scored.positions), as_list(scored.labelled)) == ([1, 1], [1, 0])
    assert scored.scored_labels.tolist() == [1, -100]


def test_multi_label():
    scored = scored_of("multi_label", labels=[[1.0, 0.0, -100.0], [0.0, 1.0, 1.0]])
    assert (as_list(scored.positions), as_list(scored.labelled)) == ([1, 1], [[1, 1, 0], [1, 1, 1]])


def test_regression():
    scored = scored_of("regression", labels=[0.5, float("nan")])
    assert (as_list(scored.positions), as_list(scored.labelled)) == ([1, 1], [[1], [0]])
    assert scored.scored_labels[0].tolist() == [0.5]


def test_token_classification():
    scored = scored_of("token_classification", labels=[[3, -100, 4], [-100, 2, 1]])
    assert as_list(scored.positions) == as_list(scored.labelled) == [[1, 0, 1], [0, 1, 0]]
    assert scored.scored_labels.tolist() == [3, 4, 2]  # the last one is padding
    scored = scored_of("token_classification", "attended", labels=[[3, -100, 4], [-100, 2, 1]])
    assert scored.positions.equal(ATTENDED)
    assert as_list(scored.labelled) == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("start", "end", "labelled", "labels"),
    [
        ([0, 1], [2, 1], [1, 1, 1, 1], [0, 1, 2, 1]),
        ([-100, 1], [2, 2], [0, 1, 1, 0], [-100, 1, 2, -100]),  # unknown; padding
        ([9, 0], [3, 0], [0, 1, 0, 1], [-100, 0, -100, 0]),  # truncated
    ],
)
def test_question_answering(start, end, labelled, labels):
    scored = scored_of("question_answering", start_positions=start, end_positions=end)
    assert scored.attended.equal(ATTENDED)
    assert as_list(scored.positions) == [1, 1, 1, 1]
    assert as_list(scored.labelled) == labelled
    assert scored.scored_labels.tolist() == labels


def test_multiple_choice():
    inputs = {name: value.unflatten(0, (1, 2)) for name, value in INPUTS.items()}
    scored = scored_of("multiple_choice", inputs=inputs, labels=[1])
    assert scored.attended.equal(ATTENDED)
    assert (as_list(scored.positions), as_list(scored.labelled)) == ([1], [1])


def test_masked_language_modelling():
    scored = scored_of("mlm", labels=[[-100, 6, -100], [8, -100, -100]])
    assert as_list(scored.positions) == as_list(scored.labelled) == [[0, 1, 0], [1, 0, 0]]
    assert scored.scored_labels.tolist() == [6, 8]


def test_causal_language_modelling_is_shifted():
    scored = scored_of("causal", labels=[[5, 6, 7], [8, 9, -100]])
    assert as_list(scored.positions) == as_list(scored.labelled) == [[1, 1, 0], [1, 0, 0]]
    assert scored.scored_labels.tolist() == [6, 7, 9]
    scored = scored_of("causal", "attended", labels=[[5, 6, 7], [8, 9, -100]])
    assert scored.positions.equal(ATTENDED)
    assert as_list(scored.labelled) == [[1, 1, 0], [1, 0, 0]]


def test_seq2seq():
    model = make_model("bart", "seq2seq")
    inputs = {**INPUTS, "labels": torch.tensor([[7, 8, 2, -100], [9, 2, -100, -100]])}
    scored = find_head(model).score(inputs)
    assert as_list(scored.attended) == as_list(scored.positions) == [[1, 1, 1, 0], [1, 1, 0, 0]]
    completed = find_head(model).complete(inputs, model)
    assert completed["decoder_input_ids"].tolist() == [[2, 7, 8, 2], [2, 9, 2, 0]]
    assert find_head(model).complete({**inputs, "decoder_input_ids": 7}, model)["decoder_input_ids"] == 7
    with_mask = {**inputs, "decoder_attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])}
    assert as_list(find_head(model).score(with_mask, "attended").positions) == [[1, 1, 1, 1], [1, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"no labels and no decoder_input_ids.*DataCollatorForSeq2Seq"):
        find_head(model).score(INPUTS)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_an_image_or_a_recording_is_one_item(kind):
    scored = head_of(kind).score(collate(make_rows(kind)))
    assert as_list(scored.attended) == [[1]] * 16
    assert as_list(scored.positions) == as_list(scored.labelled) == [1] * 16


def test_without_attention_mask_everything_is_attended():
    scored = scored_of("classification", inputs={"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert scored.attended.all()
    assert scored.labels is None
    assert not scored.labelled.any()
    embedded = scored_of("classification", inputs={"inputs_embeds": torch.ones(2, 3, 16)})
    assert embedded.attended.shape == (2, 3)


def test_only_the_first_examples(every_head):
    """Repeated rows that fill the last batch of an evaluation are not scored."""
    head, rows = head_of(every_head), make_rows(every_head)
    batch = collate(rows)
    first = head.score(batch, num_examples=4)
    alone = head.score({name: value[:4] for name, value in batch.items()})
    for name in ("attended", "positions", "labelled"):
        assert getattr(first, name).sum() == getattr(alone, name).sum() > 0
    assert torch.equal(first.scored_labels.nan_to_num(7), alone.scored_labels.nan_to_num(7))


@pytest.mark.parametrize("kind", ["mlm", "causal", "token_classification"])
def test_labels_are_missing(kind):
    with pytest.raises(ValueError, match=r"DataCollatorForLanguageModeling.*kl_positions='attended' and alpha_task=0"):
        scored_of(kind)
    assert scored_of(kind, "attended").positions.equal(ATTENDED)


def test_labels_of_another_kind():
    with pytest.raises(
        ValueError, match=r"labels are torch.float32 \[2, 2\].*problem_type='multi_label_classification'"
    ):
        scored_of("classification", labels=[[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"labels are torch.int64 \[2\].*yes or no per class"):
        scored_of("multi_label", labels=[1, 0])


def test_every_head_is_tried():
    """The rows of the tests are those of the table; XLNet's head has tests of its own."""
    assert {type(head_of(kind)) for kind in AUTO_CLASSES} >= set(finding.HEADS) - {PermutedLMHead}


def test_auto_class(every_head):
    model = make_model(FAMILY_OF_HEAD.get(every_head, "bert"), every_head)
    assert auto_class_of(model).__name__ == AUTO_CLASSES[every_head]


def test_head_of_a_subclass():
    class MyModel(type(make_model("bert", "mlm"))):
        pass

    assert type(find_head(MyModel(make_config("bert")))) is type(head_of("mlm"))


def test_head_of_a_model_of_ones_own():
    class Mine(type(make_model("bert", "classification")).__bases__[0]):
        def __init__(self, config):
            super().__init__(config)
            self.bert = AutoModel.from_config(config)
            self.head = torch.nn.Linear(16, 2)

        def forward(self, input_ids):
            return self.head(self.bert(input_ids)[0])

    head = find_head(Mine(make_config("bert")))
    assert type(head) is Head
    with pytest.raises(ValueError, match=r"Mine returned logits \[2, 3, 4\]"):
        head.scored_logits({"logits": torch.ones(2, 3, 4)}, None)
    with pytest.raises(ValueError, match="Mine returned loss, prediction_logits and no logits"):
        head.scored_logits({"loss": 0, "prediction_logits": 0}, None)
    with pytest.raises(ValueError, match="returned start_top_log_probs and no start_logits"):
        head_of("question_answering").scored_logits({"start_top_log_probs": 0}, None)


def test_no_head():
    model = AutoModel.from_config(make_config("bert"))
    head = find_head(model)
    assert type(head) is NoHead
    assert auto_class_of(model) is AutoModel
    assert pipeline_tag_of(model) == "feature-extraction"
    assert not is_exported(model)
    scored = head.score(INPUTS)
    assert scored.attended.equal(ATTENDED)
    assert scored.labels is None
    hidden = torch.ones(2, 3, 16)
    assert head.predictions((hidden,)) is hidden
    with pytest.raises(ValueError, match=r"BartModel is an encoder-decoder without a head.*AutoModelForSeq2SeqLM"):
        find_head(AutoModel.from_config(make_config("bart")))


@pytest.mark.parametrize(
    ("class_name", "head", "auto_class"),
    [
        ("MarianMTModel", Seq2SeqLMHead, "AutoModelForSeq2SeqLM"),
        ("BartForConditionalGeneration", Seq2SeqLMHead, "AutoModelForSeq2SeqLM"),  # listed for masked LM too
        ("WhisperForConditionalGeneration", Seq2SeqLMHead, "AutoModelForSpeechSeq2Seq"),
        ("Pix2StructForConditionalGeneration", Seq2SeqLMHead, "AutoModelForImageTextToText"),  # declares no logits
        ("XLMWithLMHeadModel", MaskedLMHead, "AutoModelForMaskedLM"),  # listed for causal LM too
        ("XLNetLMHeadModel", PermutedLMHead, "AutoModelForCausalLM"),
        ("BertLMHeadModel", CausalLMHead, "AutoModelForCausalLM"),
        ("BertGenerationDecoder", CausalLMHead, "AutoModelForCausalLM"),
        ("Gemma3ForConditionalGeneration", CausalLMHead, "AutoModelForCausalLM"),
        ("LlavaForConditionalGeneration", CausalLMHead, "AutoModelForImageTextToText"),
        ("Qwen2AudioForConditionalGeneration", CausalLMHead, "AutoModelForSeq2SeqLM"),
        ("DeiTForImageClassificationWithTeacher", Head, "AutoModelForImageClassification"),
        ("HubertForSequenceClassification", Head, "AutoModelForAudioClassification"),
    ],
)
def test_head_is_the_task_that_transformers_lists_the_class_for(class_name, head, auto_class):
    with torch.device("meta"):
        model = build(class_name, seed=None)
    assert type(find_head(model)) is head
    assert auto_class_of(model).__name__ == auto_class


@pytest.mark.parametrize(
    ("class_name", "tag", "exported"),
    [
        ("BertForSequenceClassification", "text-classification", True),
        ("BertForTokenClassification", "token-classification", True),
        ("BertForQuestionAnswering", "question-answering", True),
        ("BertForMultipleChoice", "multiple-choice", False),
        ("BertForMaskedLM", "fill-mask", True),
        ("BertLMHeadModel", "text-generation", True),
        ("BertForNextSentencePrediction", None, False),
        ("ViTForImageClassification", "image-classification", False),
        ("HubertForSequenceClassification", "audio-classification", False),
        ("MarianMTModel", None, False),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition", False),
        ("LlavaForConditionalGeneration", None, False),
    ],
)
def test_what_the_hub_calls_it_and_what_is_exported(class_name, tag, exported):
    with torch.device("meta"):
        model = build(class_name, seed=None)
    assert (pipeline_tag_of(model), is_exported(model)) == (tag, exported)


@pytest.mark.parametrize(
    ("class_name", "task"),
    [
        ("ElectraForPreTraining", "pretraining"),
        ("BertForPreTraining", "pretraining"),
        ("Wav2Vec2ForCTC", "ctc"),
        ("SegformerForSemanticSegmentation", "semantic segmentation"),
        ("ViltForQuestionAnswering", "visual question answering"),
    ],
)
def test_task_that_is_not_distilled(class_name, task):
    with torch.device("meta"):
        model = build(class_name, seed=None)
    with pytest.raises(ValueError, match=f"{class_name} is made for {task}, whose outputs cannot be distilled"):
        find_head(model)


@pytest.mark.parametrize(
    ("class_name", "returned"),
    [
        ("PPLCNetForImageClassification", "hidden_states, last_hidden_state and no logits"),
        ("XLNetForQuestionAnswering", "start_top_log_probs and no start_logits and no end_logits"),
    ],
)
def test_model_that_declares_no_logits(class_name, returned):
    with torch.device("meta"):
        model = build(class_name, seed=None)
    with pytest.raises(ValueError, match=f"{class_name} returns .*{returned}"):
        find_head(model)


def test_what_a_model_returns_has_names():
    answers, classes = head_of("question_answering"), head_of("classification")
    one, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert answers.predictions((None, one, other)) == (one, other)
    assert answers.predictions({"end_logits": other, "start_logits": one}) == (one, other)
    for output in (one, (one, other), {"logits": one, "mine": other}):
        assert classes.predictions(output) is one
    with pytest.raises(ValueError, match="BertForQuestionAnswering returned start_logits and no end_logits"):
        answers.predictions((one,))


def test_decoder_inputs_are_those_of_the_models_own_forward():
    model = build("M2M100ForConditionalGeneration", seed=0)
    labels = torch.tensor([[7, 8, 2, -100], [9, 2, -100, -100]])
    read = []
    model.get_decoder().register_forward_pre_hook(
        lambda m, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    model(torch.tensor([[5, 6], [7, 8]]), labels=labels)
    assert decoder_input_ids_of(model, labels).tolist() == read[0].tolist() == [[2, 7, 8, 2], [2, 9, 2, 0]]
    with pytest.raises(ValueError, match=r"BertForMaskedLM has no function that derives.*decoder_input_ids"):
        decoder_input_ids_of(make_model("bert", "mlm"), labels)
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match=r"from both of .*'decoder_start_token_id': None.* M2M100ForConditional"):
        decoder_input_ids_of(model, labels)


def test_conditional_generation_without_an_encoder():
    class MineForConditionalGeneration(type(make_model("gpt2", "causal"))):
        pass

    with pytest.raises(ValueError, match="MineForConditionalGeneration is not an encoder-decoder"):
        find_head(MineForConditionalGeneration(make_config("gpt2")))


def test_nothing_but_repeats(every_head):
    """A process whose share of the last evaluation batch is all repeats scores no example."""
    scored = head_of(every_head).score(collate(make_rows(every_head)), "labels", 0)
    assert not scored.positions.any()
    assert not scored.labelled.any()


@pytest.mark.parametrize(
    ("head", "problem_type"),
    [
        ("regression", "regression"),
        ("classification", "single_label_classification"),
        ("multi_label", "multi_label_classification"),
        ("token_classification", None),
        ("question_answering", None),
        ("multiple_choice", None),
        ("mlm", None),
    ],
)
def test_config_says_what_the_logits_are(make_trainer, tmp_path, head, problem_type):
    """The saved config has the problem type, as after a training with `Trainer`, whose models record it."""
    teacher = make_model("bert", head)
    student = make_student(teacher)
    student.config.problem_type = None if head != "multi_label" else problem_type
    make_trainer(student, teacher, make_rows(head), max_steps=1).save_model(str(tmp_path / "student"))
    assert HEADS[head].from_pretrained(tmp_path / "student").config.problem_type == problem_type


def test_a_pipeline_gives_the_numbers_of_a_regression(make_trainer, tmp_path):
    """And not a sigmoid of them."""
    teacher, tokenizer = make_model("bert", "regression"), make_text_tokenizer()
    student = make_student(teacher)
    options = {"max_steps": 1, "trainer_options": {"processing_class": tokenizer}}
    make_trainer(student, teacher, make_rows("regression"), **options).save_model(str(tmp_path / "student"))
    (answer,) = pipeline("text-classification", str(tmp_path / "student"), device="cpu")("w5 w6")
    with torch.no_grad():
        number = student.eval()(**tokenizer("w5 w6", return_tensors="pt")).logits.item()
    assert answer["score"] == pytest.approx(number, rel=1e-5)
    assert answer["score"] != pytest.approx(1 / (1 + math.exp(-number)), rel=1e-3)

"""What docs/compare.md says of others under accumulation, where nothing else shows it: see also test_trl_peer.py."""

import pytest
import torch
from datasets import Dataset

from recipes.benchmarks._common import train_quietly
from recipes.benchmarks.split_invariance import SPLITS, KeepGradient, collate, make_model, make_rows
from tests.conftest import make_model as make_tiny_model
from tests.conftest import make_text_tokenizer, make_texts


def deviation(gradients: list[torch.Tensor]) -> float:
    whole, accumulated = gradients
    return ((accumulated - whole).norm() / whole.norm()).item()


def test_textbrewer_takes_the_mean_of_the_means_of_micro_batches(tmp_path):
    """Which is off where the numbers of labels are unequal, as in most tasks per token."""
    textbrewer = pytest.importorskip("textbrewer")

    def read(batch, outputs):
        return {"logits": outputs.logits, "logits_mask": batch["labels"].ne(-100)}

    def gradient(batch_size, num_batches):
        teacher, student = (make_model("masked LM, BERT", seed) for seed in (0, 1))
        rows = make_rows("masked LM, BERT")
        batches = [collate(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]
        train_config = textbrewer.TrainingConfig(
            gradient_accumulation_steps=num_batches, ckpt_frequency=1, output_dir=str(tmp_path), device="cpu"
        )
        distiller = textbrewer.GeneralDistiller(
            train_config, textbrewer.DistillationConfig(temperature=2.0), teacher, student, read, read
        )
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        taken = []
        optimizer.register_step_pre_hook(
            lambda *_: taken.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        )
        with distiller:
            distiller.train(optimizer, batches, num_epochs=1)
        (own,) = taken
        return own

    assert 0.01 < deviation([gradient(*split) for split in SPLITS.values()]) < 1


WITHIN_BATCH = ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss")


def deviation_of_sentence_transformers(loss_name, tmp_path):
    """How far the gradients of split steps are from that of one batch."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    make_tiny_model("bert", "classification").base_model.save_pretrained(tmp_path)
    make_text_tokenizer().save_pretrained(tmp_path)
    texts, generator = make_texts(48), torch.Generator().manual_seed(0)

    def gradient(batch_size, num_batches):
        student = Transformer(str(tmp_path))
        student = package.SentenceTransformer(
            modules=[student, Pooling(student.get_embedding_dimension())], device="cpu"
        )
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        columns = {"query": texts[:16]}
        if loss_name == "DistillKLDivLoss":
            columns |= {"positive": texts[16:32], "negative": texts[32:]}
        size = 2 if len(columns) == 3 else student.get_embedding_dimension()
        if loss_name in WITHIN_BATCH:
            columns |= {"positive": texts[16:32]}
        else:
            columns["label"] = torch.randn(16, size, generator=generator.manual_seed(0)).tolist()
        args = package.SentenceTransformerTrainingArguments(
            str(tmp_path / "out"),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=num_batches,
            max_steps=1,
            max_grad_norm=0.0,
            learning_rate=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        keeper = KeepGradient()
        loss = getattr(losses, loss_name)(student)
        train_quietly(
            package.SentenceTransformerTrainer(
                student, args, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[keeper]
            )
        )
        return keeper.gradient

    return deviation([gradient(*split) for split in SPLITS.values()])


@pytest.mark.parametrize("loss_name", ["EmbedDistillLoss", "DistillKLDivLoss"])
def test_sentence_transformers_is_exact_where_batches_are_of_one_size(loss_name, tmp_path):
    assert deviation_of_sentence_transformers(loss_name, tmp_path) < 1e-6


@pytest.mark.parametrize("loss_name", WITHIN_BATCH)
def test_sentence_transformers_compares_texts_of_one_batch_only(loss_name, tmp_path):
    """Also the losses with GradCache: their batches are small inside, but accumulated ones do not see each other."""
    assert deviation_of_sentence_transformers(loss_name, tmp_path) > 0.1

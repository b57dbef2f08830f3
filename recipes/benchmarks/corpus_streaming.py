"""`python -m recipes.benchmarks.corpus_streaming`: speed and memory of a streamed corpus as it grows a hundredfold.

Synthetic text is read from disk, shuffled, tokenized, packed into rows and masked by the trainer's own data loader.
Each corpus size is read completely in a separate process, without training steps.
"""

import multiprocessing
import random
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from hf_distill import (
    DataCollatorForMaskedLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    load_corpus,
    pack_documents,
)
from recipes.benchmarks._common import PACKAGES, QUIET, make_parser, print_machine, print_versions, table, write_json

MEGABYTES = [2, 20, 200]
BLOCK_SIZE, BATCH_SIZE, SHUFFLED = 512, 32, 1_000
CHUNK = 2**18
"""Bytes read from a file at a time. Smaller than the smallest file, so that all corpora fill the same buffer."""

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_corpus(folder: Path, megabytes: float) -> int:
    """Writes documents of 20 to 300 words, one per line, in four files. Returns the number of bytes.

    Words are synthetic, and their frequency falls with their rank, as in natural language.
    """
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 10))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    folder.mkdir(parents=True)
    written = 0
    for index in range(4):
        with (folder / f"{index}.txt").open("w") as file:
            while written < (index + 1) / 4 * megabytes * 1e6:
                document = " ".join(rng.choices(words, weights, k=rng.randint(20, 300)))
                written += file.write(document + "\n")
    return written


def make_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with RoBERTa's special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train([str(file)], BpeTrainer(vocab_size=10_000, special_tokens=SPECIAL, show_progress=False))
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = [f"{name}_token" for name in ("bos", "pad", "eos", "unk", "mask")]
    special = dict(zip(names, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=BLOCK_SIZE, **special)


def read_all(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Measures rows per second and memory over one pass through the trainer's data loader."""
    torch.set_num_threads(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=BLOCK_SIZE + 2, **sizes)
    student, teacher = RobertaForMaskedLM(config), RobertaForMaskedLM(config)
    documents = load_corpus(str(folder), streaming=True, chunksize=CHUNK).shuffle(seed=0, buffer_size=SHUFFLED)
    with tempfile.TemporaryDirectory() as output:
        trainer = DistillationTrainer(
            student,
            DistillationTrainingArguments(
                output, max_steps=1, per_device_train_batch_size=BATCH_SIZE, use_cpu=True, **QUIET
            ),
            DataCollatorForMaskedLM(tokenizer, attention=SeparateDocuments(student, teacher)),
            train_dataset=pack_documents(documents, tokenizer, BLOCK_SIZE),
            teacher_model=teacher,
        )
        batches = trainer.get_train_dataloader()
        before, start, start_of_cpu = peak_of_process() / 2**20, time.perf_counter(), time.process_time()
        rows = sum(len(batch["labels"]) for batch in batches)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_of_cpu
    return {
        "rows": rows,
        "rows per second": rows / seconds,
        "rows per CPU second": rows / cpu_seconds,  # independent of other work on the machine
        "MB before": before,
        "MB at most": peak_of_process() / 2**20,
    }


def peak_of_process() -> int:
    """Peak memory of this process in bytes. `getrusage` is not used: its value starts at the parent's memory."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def run(sizes: list[float], output: Path) -> dict[str, dict[str, float]]:
    """Measures, prints the table, and writes the figures to `output`."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in sizes:
            corpus = Path(folder) / f"{megabytes}"
            written = write_corpus(corpus, megabytes)
            if not measured:
                tokenizer = make_tokenizer(corpus / "0.txt")
            # A new process for each size, so that peaks do not mix.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                measured[f"{written / 1e6:.1f} MB"] = process.submit(read_all, corpus, tokenizer).result()
    header = ["corpus", *next(iter(measured.values()))]
    print(table(header, [[name, *(f"{value:,.0f}" for value in own.values())] for name, own in measured.items()]))
    print(f"\nRows of {BLOCK_SIZE} tokens in batches of {BATCH_SIZE}, one process without workers")
    on = print_machine("device")
    write_json(
        output, {"machine": on["device"], "versions": print_versions([*PACKAGES, "datasets"]), "corpora": measured}
    )
    return measured


def main() -> None:
    output = make_parser("corpus_streaming", __doc__).parse_args().output
    transformers.logging.set_verbosity_error()
    run(MEGABYTES, output)


if __name__ == "__main__":
    main()

"""`hf-distill env`"""

import argparse
import platform

from hf_distill.machine import cpu_features, machine, versions

PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "huggingface_hub", "safetensors"),
    *("onnx", "onnxruntime", "onnxscript", "torchao", "bitsandbytes", "scikit-learn", "fastapi"),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "env",
        help="print the versions and the hardware that a bug report needs",
        description="Print the versions of Python and of the packages, the CPU and the GPUs. Paste it into a bug "
        "report: it has no token, no path and no name of the machine.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    found = versions(PACKAGES)
    on, features = machine(), cpu_features()
    lines = {
        **found,
        **{name: "not installed" for name in PACKAGES if name not in found},
        "system": f"{on['system']} {platform.release()}",
        "CPU": f"{on['cpu']}, {on['cores']} cores",
        "CPU features": "unknown" if features is None else ", ".join(features) or "none of those that matter here",
        "GPU": _gpus(),
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _gpus() -> str:
    try:
        import torch
    except ImportError as error:
        return f"unknown, as PyTorch cannot be imported: {error}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda or torch.version.hip})"
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "none"

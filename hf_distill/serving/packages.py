"""Checks that the packages of a service are installed, without importing the rest of `hf_distill.serving`."""

from hf_distill.optional import optional

PACKAGES = ["fastapi", "fastapi_offline", "httptools", "prometheus_client", "uvicorn"]


def check_packages() -> None:
    """Raises `ImportError` if a package is missing; the message shows how to install it."""
    for package in PACKAGES:
        optional(package, "serve")

"""`python -m hf_distill.cli`, as for `accelerate launch -m hf_distill.cli train ...`."""

import sys

from hf_distill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

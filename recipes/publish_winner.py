"""Put a winner on the Hub: weights, tokenizer, card and record in one commit.

    python recipes/publish_winner.py runs/two_stage --repo-id me/my-codelm
    python recipes/publish_winner.py runs/two_stage --repo-id me/my-codelm --dry-run --what model,study,space

The same as `codenas publish`; needs `hf auth login` once, or HF_TOKEN.
"""

import sys

from codenas_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))

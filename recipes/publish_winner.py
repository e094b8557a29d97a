"""Put a winner on the Hub: weights, tokenizer, card and record in one commit.

    python recipes/publish_winner.py runs/my-study me/my-codelm
    python recipes/publish_winner.py runs/my-study me/my-codelm --dry-run --what model,study,space

The same as `codenas publish`; needs `hf auth login` once, or HF_TOKEN.
"""

import argparse
import sys
from pathlib import Path

from codenas_hf.release.hub import KINDS, PublishError, publish

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a run, or its release folder")
    parser.add_argument("repo_id", help="owner/name on the Hub")
    parser.add_argument("--what", default="model", help=f"any of {','.join(KINDS)} (default: model)")
    parser.add_argument("--license", default="mit", help="of the weights (default: mit)")
    parser.add_argument("--private", action="store_true", help="create the repositories private")
    parser.add_argument("--create-pr", action="store_true", help="open pull requests instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="prepare everything, send nothing")
    options = vars(parser.parse_args())
    options["what"] = options["what"].split(",")
    try:
        for done in publish(options.pop("folder"), **options):
            state = "would hold" if options["dry_run"] else "holds" if done.changed else "already held"
            print(
                f"{done.what:<10} {done.pr_url or done.url} {state} {len(done.files)} files, {done.num_bytes:,} bytes"
            )
    except (PublishError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))

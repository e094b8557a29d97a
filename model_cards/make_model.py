"""Trains the model that comes with the package, and puts it, measured and with its card, beside this file.

    accelerate launch --config_file configs/accelerate/one.yaml model_cards/make_model.py "4800 seconds"
    python model_cards/make_model.py "21600 seconds" corpus.archives=~/wheels
    python model_cards/make_model.py "6000 seconds" --on train.seed=1
    python model_cards/make_model.py --card                             # only the card, from what is recorded

Text, training and format are those of configs/released.yaml, the architecture is the main job's winner
(configs/genomes/searched_4mb.yaml). A longer budget goes on where the training before it stood, as long as its folder
is there; `--on` trains the weights that lie beside this file on, in other rows where the seed is another.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from codenas_hf import RunSettings, evaluate, train
from codenas_hf.folders import Release, whole_folder
from codenas_hf.hardware import is_main_process
from codenas_hf.release.parcels import model_parcel

PLACE = Path(__file__).parent / "codenas-py-4mb"


def main(budget: str, *words: str) -> None:
    """Trains for `budget` in all, or on for as much, with settings as words of `name=value`."""
    on = "--on" in words
    settings = RunSettings.of(*(word for word in words if word != "--on"), config=["released"])
    out = settings.folder / PLACE.name
    folder = train(PLACE if on else "searched_4mb", budget, settings=settings, out=out, fine_tune=on)
    if not is_main_process():
        return
    evaluate(folder)
    put(folder)


def put(folder: Path) -> None:
    """Puts a release with a fresh card beside this file."""
    with tempfile.TemporaryDirectory() as work:
        name = f"{PLACE.parent.name}/{PLACE.name}"
        parcel = model_parcel(
            Release(folder), repo_id=name, study=None, licence="mit", dataset_id=None, work=Path(work)
        )
        with whole_folder(PLACE) as draft:
            for path, content in parcel.files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    (draft / path).write_bytes(content)
                else:
                    shutil.copyfile(content, draft / path)
    print(f"model     {PLACE}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1:] == ["--card"]:
        put(PLACE)
    else:
        main(*sys.argv[1:])

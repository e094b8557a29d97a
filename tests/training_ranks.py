"""What each process of the DDP test runs: trains together with the others and writes what it ended with."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file
from test_loop import settings
from training_fakes import FakeTokens, tiny_model, weights

from codenas_hf.engine.records import Budget
from codenas_hf.training import train

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    model = tiny_model(seed=accelerator.process_index)  # DDP must make them equal
    if accelerator.is_main_process:
        model = tiny_model()
    how = settings(micro_sequences=2)
    result = train(model, FakeTokens(), Budget("steps", 12), settings=how, folder=folder, accelerator=accelerator)
    save_file({"weights": weights(model)}, folder / f"rank{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        facts = {"world": accelerator.num_processes, "loss": [point["loss"] for point in result.curve]}
        (folder / "facts.json").write_text(json.dumps(facts))
    accelerator.end_training()

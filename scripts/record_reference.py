#!/usr/bin/env python3
"""Record what the torch reference of UniPixel computes, for `unipixel-jax parity` to compare with.

The script needs torch, transformers and a clone of github.com/PolyU-ChenLab/UniPixel, but not JAX. See docs/recording.md.

    python scripts/record_reference.py --reference UniPixel --checkpoint UniPixel-3B --out recordings/3b --device cuda --dtype bfloat16
    python scripts/record_reference.py --reference UniPixel --tiny micro_b --out recordings/micro_b
    python scripts/record_reference.py --reference UniPixel --replay recordings/micro_b
    python scripts/record_reference.py --reference UniPixel --check-load converted/
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from recording import reference
from recording.cases import Maker, Plan
from recording.files import read_case, write_case, written_aside
from recording.kinds import read_media, run
from recording.media import draw
from recording.reference import RecordingError, Session
from recording.tiny import calibrate, plan_of, read_spec, save_adapter, save_checkpoint


def main() -> int:
    """Parse the command line and do one of its four jobs; return the exit status."""
    args = parse_args()
    warnings.simplefilter("ignore")
    try:
        reference.use_clone(args.reference)
        import transformers

        transformers.utils.logging.set_verbosity_error()
        reference.prepare_device(args.device)
        if args.check_load:
            return check_load(args.check_load)
        if args.replay:
            return replay(args.replay, args)
        return record(args)
    except RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--checkpoint", type=Path, metavar="DIR", help="record this UniPixel checkpoint (a full model)")
    job.add_argument("--tiny", metavar="SPEC", help="record a random model: a preset's name or a JSON file of sizes")
    job.add_argument("--replay", type=Path, metavar="RECORDING", help="run a recording's cases again here, and compare")
    job.add_argument("--check-load", type=Path, metavar="DIR", help="say whether the reference loads this directory in full")
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the clone of PolyU-ChenLab/UniPixel")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the recording (must not exist)")
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="attention of vision tower and language model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.checkpoint or args.tiny) and args.out is None:
        parser.error("--out is needed to record")
    return args


def record(args: argparse.Namespace) -> int:
    """Record a checkpoint or a tiny random model into ``--out``; return the exit status."""
    spec = read_spec(args.tiny) if args.tiny else None
    plan = plan_of(spec) if spec else Plan()
    torch.manual_seed(args.seed)
    with written_aside(args.out) as folder:
        session = Session(folder, args.device, args.dtype, args.attention)
        draw(folder / "media", plan.photo_size, plan.media, args.seed)
        if spec:
            # calibrated on the CPU in float32, whatever is recorded, so that the weights are the same for every device and dtype
            draft = Session(folder, "cpu", "float32", "sdpa")
            save_checkpoint(folder / "checkpoint", spec, Path(args.tiny).stem, "float32", args.seed)
            calibrate(draft, args.dtype, *examples(draft, plan, args.seed))
        else:
            if not (args.checkpoint / "config.json").is_file():
                raise RecordingError(f"--checkpoint {args.checkpoint} has no config.json: expected the directory of a UniPixel checkpoint")
            (folder / "checkpoint").symlink_to(args.checkpoint.resolve(), target_is_directory=True)
        save_adapter(session, args.seed)
        entries = []
        # saving the adapter changed the layers of the model that the session holds
        session.release()
        for entry, inputs in Maker(session, plan, args.seed).cases():
            started = time.perf_counter()
            outputs = run(session, inputs, entry)
            write_case(folder, entry, inputs, outputs)
            entries.append(entry)
            print(f"{entry['name']:24} {entry['kind']:14} {time.perf_counter() - started:6.1f} s")
        (folder / "export.json").write_text(json.dumps(header(args) | {"cases": entries}, indent=1))
    print(f"recorded {len(entries)} cases in {args.out}")
    return 0


def examples(session: Session, plan: Plan, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Return the prompts and clips that a random model is calibrated on: those of its own recording."""
    prompts, clips = [], []
    wanted = ("input_ids", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    for entry, inputs in Maker(session, plan, seed).cases():
        if entry["name"] == "generate":
            prompts.append({key: inputs[key] for key in wanted})
        if entry["name"] == "e2e_image":
            data = read_media(session, entry)[0]
            prompts.append({key: data[key] for key in wanted})
        if entry["name"] == "sam2_video":
            clips.append(inputs)
    to = session.device
    return [{k: torch.as_tensor(v).to(to) for k, v in p.items()} for p in prompts], [{k: v.to(to) for k, v in c.items()} for c in clips]


def header(args: argparse.Namespace) -> dict[str, Any]:
    """Return the entries of ``export.json`` besides the cases."""
    import transformers

    git = subprocess.run(["git", "-C", str(args.reference), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "format": 1,
        "reference": {"repository": "PolyU-ChenLab/UniPixel", "commit": git.stdout.strip() or "unknown"},
        "device": args.device,
        "dtype": args.dtype,
        "attention": args.attention,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": args.seed,
    }


def replay(folder: Path, args: argparse.Namespace) -> int:
    """Run a recording's cases again and compare; return 1 if a tensor is too far off, and 0 if none is.

    In float32 the limits are those of recordings in general (2e-5, gradients 3e-3, integers exact, masks 0.01%, and after steps of training 1e-4 for
    losses and 1e-2 for changes of weights); in bfloat16 real numbers may be 5% off, and what follows an argmax or a threshold is shown but not judged.
    """
    try:
        meta = json.loads((folder / "export.json").read_text())
    except (OSError, ValueError) as error:
        raise RecordingError(f"--replay {folder} is not a recording: {error}") from error
    exact = meta["dtype"] == "float32"
    session = Session(folder, args.device, meta["dtype"], args.attention)
    failed = 0
    print(f"{'case':24} {'tensors':>7} {'worst':>9}  tensor")
    for entry in meta["cases"]:
        inputs, wanted = read_case(folder, entry["name"])
        found = run(session, inputs, dict(entry))
        grads = [value.double().norm() for name, value in wanted.items() if name.startswith("grad.")]
        whole = float(wanted["grad_norms"].double().norm()) if "grad_norms" in wanted else float(torch.stack(grads).norm()) if grads else 0.0
        errors, limits = {}, {}
        for name, value in wanted.items():
            errors[name] = distance(found[name], value)
            allowed = 2e-5 if exact else 0.05
            if value.dtype == torch.bool:
                allowed = 1e-4 if exact else 1.0
            elif not value.dtype.is_floating_point:
                allowed = 0.0 if exact else 1.0
            elif name == "losses":
                allowed = 1e-4
            elif name.startswith("change"):
                allowed = 1e-2
            elif name.startswith("grad"):
                # some gradients, such as those of key biases, are zero but for rounding, and so get an absolute allowance
                allowed = 3e-3 + 1e-6 * whole / max(float(value.double().norm()), 1e-30)
            limits[name] = allowed
        bad = [name for name in errors if errors[name] > limits[name]]
        worst = max(errors, key=lambda name: errors[name] / max(limits[name], 1e-9))
        failed += bool(bad)
        print(f"{entry['name']:24} {len(errors):7} {errors[worst]:9.1e}  {worst}{'  FAILED: ' + ', '.join(bad) if bad else ''}")
    print(f"{len(meta['cases']) - failed} of {len(meta['cases'])} cases agree")
    return int(failed > 0)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative error of a tensor of real numbers, or the share of elements that differ in any other tensor; 1 where the shapes differ."""
    if found.shape != wanted.shape:
        return 1.0
    if not wanted.dtype.is_floating_point:
        return float((found != wanted).double().mean()) if wanted.numel() else 0.0
    return float((found.double() - wanted.double()).norm()) / max(float(wanted.double().norm()), 1e-30)


def check_load(folder: Path) -> int:
    """Print whether the reference's ``build_model`` loads a directory with no tensor missing, unexpected or of another shape; return 0 if so, else 1."""
    faults = {kind: names for kind, names in reference.loading_faults(folder).items() if names}
    for kind, names in faults.items():
        print(f"{kind}: {len(names)}: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}")
    print(f"{folder}: {'does not load in full' if faults else 'loads in the reference, every tensor in its place'}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

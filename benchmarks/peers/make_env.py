"""Virtual environments for the libraries we compare with, one each, at pinned versions.

    python benchmarks/peers/make_env.py rectools replay recbole

An environment is made once and then reused; a change of pins makes it anew.
"""

import argparse
import json
import shutil
import subprocess
import venv
from pathlib import Path


DEFAULT_FOLDER = Path.home() / ".cache" / "hf_seqrec_benchmarks"

# PyTorch stands in the same command as the library, so that every library runs on the same build of it.
TORCH = "torch==2.13.0"
REQUIREMENTS = {
    "rectools": [TORCH, "rectools[torch]==0.19.0"],
    "replay": [TORCH, "replay-rec[torch]==0.22.0"],
    # RecBole 1.2.1 uses names that numpy 2 and pandas 3 took away.
    "recbole": [TORCH, "recbole==1.2.1", "numpy<2", "pandas<3"],
}


def python_of(peer: str, folder: Path = DEFAULT_FOLDER) -> Path:
    """The interpreter of a peer's environment, made when missing.

    Args:
        peer: `rectools`, `replay` or `recbole`.
        folder: Folder that holds one environment per peer.

    Returns:
        Path of the interpreter.

    Raises:
        KeyError: An unknown peer.
        subprocess.CalledProcessError: pip could not install it.
    """
    if peer not in REQUIREMENTS:
        raise KeyError(f"no environment is known for {peer!r}; choose one of {', '.join(REQUIREMENTS)}.")
    environment = folder / peer
    # Written last: an environment without it, or with other pins, is incomplete and made anew.
    finished = environment / "requirements.json"
    python = environment / "bin" / "python"
    if finished.exists() and json.loads(finished.read_text()) == REQUIREMENTS[peer]:
        return python
    print(f"making {environment} ({', '.join(REQUIREMENTS[peer])})", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *REQUIREMENTS[peer]], check=True)
    finished.write_text(json.dumps(REQUIREMENTS[peer]))
    return python


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", choices=REQUIREMENTS)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    for name in args.peers:
        print(python_of(name, args.folder))

# Sourced by the other scripts: goes to the repository's root and makes sure of .venv with what they need.
# A second call installs nothing. To use an environment of your own, set ASYRP_NO_VENV=1.
# extras: of pyproject.toml, set by the script that sources this; by default what draws the faces of the default stack.
# ASYRP_RESOLUTION=lowest-direct: the oldest versions that are allowed, in .venv-lowest. Needs uv, and Python 3.10 or 3.11
# (UV_PYTHON=3.10): those versions are older than newer Pythons.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${ASYRP_NO_VENV:-}" ]; then
  extras="${extras:-avatar}"
  resolution="${ASYRP_RESOLUTION:-}"
  venv=".venv${resolution:+-${resolution%-direct}}"
  # The stamp is written last: an installation that was interrupted is done again. It changes with what is required.
  stamp="$venv/$(cat requirements.txt pyproject.toml | cksum | tr ' ' '-').installed"
  # "dev" holds what every script needs.
  if [ ! -f "$stamp-$extras" ] && [ ! -f "$stamp-dev" ]; then
    if command -v uv >/dev/null; then
      uv venv --quiet --allow-existing "$venv"
      uv pip install --quiet --python "$venv/bin/python" ${resolution:+--resolution "$resolution"} --editable ".[$extras]"
    elif [ -n "$resolution" ]; then
      echo "ASYRP_RESOLUTION needs uv: pip install uv" >&2
      exit 1
    else
      python3 -m venv "$venv"
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    fi
    touch "$stamp-$extras"
  fi
  source "$venv/bin/activate"
fi

# The faces of the default stack, drawn when first needed: render_faces TRAIN TEST.
render_faces() {
  python scripts/avatar/render.py --split train --count "$1" --size 32 --out data/avatar/train
  python scripts/avatar/render.py --split test --count "$2" --size 32 --out data/avatar/test
}

# Sourced by the other scripts: goes to the repository's root and makes sure of .venv with requirements.txt.
# A second call installs nothing. To use an environment of your own, set ASYRP_NO_VENV=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${ASYRP_NO_VENV:-}" ]; then
  # The stamp is written last: an installation that was interrupted is done again.
  stamp=".venv/$(cksum <requirements.txt | tr ' ' '-').installed"
  if [ ! -f "$stamp" ]; then
    if command -v uv >/dev/null; then
      uv venv --quiet --allow-existing .venv
      uv pip install --quiet --python .venv/bin/python -r requirements.txt
    else
      python3 -m venv .venv
      .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    fi
    touch "$stamp"
  fi
  source .venv/bin/activate
fi

# The faces of the default stack, drawn when first needed: render_faces TRAIN TEST.
render_faces() {
  python scripts/avatar/render.py --split train --count "$1" --size 32 --out data/avatar/train
  python scripts/avatar/render.py --split test --count "$2" --size 32 --out data/avatar/test
}

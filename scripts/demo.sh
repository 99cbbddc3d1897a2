#!/usr/bin/env bash
# From a fresh clone to an edited picture, on the small default stack: no GPU, no download of weights.
# Learns "smiling" from scratch, edits faces it has never seen, and lets an independent judge count.
source "$(dirname "$0")/env.sh"

out="runs/demo"
common=(--config avatar.yml --bs_precompute 32)  # steps, loss and thresholds are those of the YAML's section `editing`

echo "1/4 faces"
render_faces 200 200

echo "2/4 LPIPS curves: where an edit should act"
python main.py --lpips "${common[@]}" --exp "$out/lpips" --edit_attr avatar_smiling --n_train_img 32 \
  --add_noise_from_xt --lpips_addnoise_th 0.1

echo "3/4 learning \"smiling\""
python main.py --run_train "${common[@]}" --exp "$out/smiling" --edit_attr avatar_smiling \
  --train_delta_block --n_train_img 64 --do_test 0 --retrain 1

echo "4/4 editing test faces"
python scripts/avatar/evaluate.py --out "$out" \
  --directions smiling=checkpoint/smiling_LC_AVATAR_t999_ninv40_ngen40_1.pth

echo "picture:    $out/smiling.png"
echo "LPIPS plot: $out/lpips_LC_AVATAR_t999_ninv40_ngen40/lpips_avatar.png"
echo "judge:      $out/report.md"

#!/usr/bin/env bash
# From a fresh clone to an edited image with the small default stack: needs no GPU and no downloaded weights.
# Learns "smiling" from scratch, edits unseen faces, and evaluates them with an independent judge.
source "$(dirname "$0")/env.sh"

out="runs/demo"
common=(--config avatar.yml --bs_precompute 32 --edit_attr avatar_smiling)

echo "1/4 faces"
render_faces 200 200

echo "2/4 LPIPS curves: at which timesteps an edit should act"
python main.py --lpips "${common[@]}" --exp "$out/lpips" --n_train_img 32

echo "3/4 learning \"smiling\""
# Fewer images than for the directions that ship, and a larger learning rate for it.
python main.py --run_train "${common[@]}" --exp "$out/smiling" --train_delta_block --n_train_img 80 --lr_training 0.8 \
  --do_test 0 --retrain 1

echo "4/4 editing test faces"
python scripts/avatar/evaluate.py --out "$out" \
  --directions smiling=smiling_LC_AVATAR_t999_ninv40_ngen40

echo "picture:    $out/smiling.png"
echo "LPIPS plot: $out/lpips_LC_AVATAR_t999_ninv40_ngen40/lpips_avatar.png"
echo "judge:      $out/report.md"

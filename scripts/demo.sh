#!/usr/bin/env bash
# From a fresh clone to an edited picture, on the small default stack: no GPU, no download of weights.
# Learns "smiling" from scratch, edits faces it has never seen, and lets an independent judge count.
source "$(dirname "$0")/env.sh"

out="runs/demo"
# At 32 pixels a mouth is decided late and changes little in LPIPS: hence a threshold far below the 0.33 of photographs.
common=(--config avatar.yml --n_inv_step 40 --n_train_step 40 --bs_precompute 32 --lpips_edit_th 0.005)

echo "1/4 faces"
render_faces 200 200

echo "2/4 LPIPS curves: where an edit should act"
python main.py --lpips "${common[@]}" --exp "$out/lpips" --edit_attr avatar_smiling --n_train_img 32 \
  --add_noise_from_xt --lpips_addnoise_th 0.1

echo "3/4 learning \"smiling\""
python main.py --run_train "${common[@]}" --exp "$out/smiling" --edit_attr avatar_smiling \
  --train_delta_block --get_h_num 1 --n_train_img 64 --bs_train 4 --n_iter 2 \
  --lr_training 0.2 --scheduler_step_size 1 --sch_gamma 0.2 \
  --clip_source origin --clip_loss_w 1 --l1_loss_w 4 --do_test 0 --retrain 1

echo "4/4 editing test faces"
python scripts/avatar/evaluate.py --out "$out" \
  --directions smiling=checkpoint/smiling_LC_AVATAR_t999_ninv40_ngen40_1.pth

echo "picture:    $out/smiling.png"
echo "LPIPS plot: $out/lpips_LC_AVATAR_t999_ninv40_ngen40/lpips_avatar.png"
echo "judge:      $out/report.md"

#!/usr/bin/env bash
# Step 3: learn a direction. Its checkpoint is checkpoint/<exp>_LC_<category>_t999_ninv<n>_ngen<n>_<epoch>.pth.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/
guid="avatar_smiling"  # an attribute of utils/text_dic.py; also the experiment's name
inv_step=40
train_step=40
n_train_img=100
n_iter=2  # epochs
bs_train=4
lr=0.2
scheduler_step_size=1  # epochs after which the learning rate falls to sch_gamma of what it was
sch_gamma=0.2
clip_source=origin  # what the change is counted from: the plain P_t, as in the paper; x0 as in the 2023 release
clip_loss_w=1.0
l1_loss_w=4.0
lpips_edit_th=0.005  # 0.33 for the real models
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --run_train \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --train_delta_block --get_h_num 1 \
  --n_train_img "$n_train_img" --n_test_img 8 \
  --n_iter "$n_iter" --bs_train "$bs_train" --bs_test 8 --bs_precompute 25 \
  --n_inv_step "$inv_step" --n_train_step "$train_step" --n_test_step "$train_step" \
  --lr_training "$lr" --scheduler_step_size "$scheduler_step_size" --sch_gamma "$sch_gamma" \
  --clip_source "$clip_source" --clip_loss_w "$clip_loss_w" --l1_loss_w "$l1_loss_w" \
  --lpips_edit_th "$lpips_edit_th" \
  --user_defined_t_addnoise 0 \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"

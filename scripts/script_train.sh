#!/usr/bin/env bash
# Step 3: learn a direction. Its checkpoint is checkpoint/<exp>_LC_<category>_t999_ninv<n>_ngen<n>_<epoch>.pth.
source "$(dirname "$0")/env.sh"

# A YAML in configs/. Its section `editing` has the settings for a model: images, epochs, learning rate, loss weights, steps,
# thresholds. To override one, add the flag of the same name below.
config="avatar.yml"
guid="avatar_smiling"  # an attribute in utils/text_dic.py, e.g. "smiling" for celeba.yml; also the name of the experiment
n_test_img=8
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --run_train \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --train_delta_block \
  --n_test_img "$n_test_img" --bs_test 8 --bs_precompute 25 \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"

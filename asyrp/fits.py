"""--fit_direction: fit directions to h from the images and labels that the settings name."""

import logging
from typing import NamedTuple

import torch
from tqdm import tqdm

from asyrp import directions, fitting, hspace, training
from asyrp.data import labels
from asyrp.data.datasets import load_batch, open_folder
from asyrp.directions import Direction
from asyrp.experiment import Experiment
from utils.digests import digest
from utils.errors import UserError

log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """Pairs, the indices of the images to use, and whether each is positive (None without labels)."""

    pairs: object
    indices: list
    positive: list | None


class Fit:
    """Fits one or more directions. settings: Settings; images: RunImages; clip: function -> asyrp.clip.Clip; prompts: list of
    (source, target)."""

    def __init__(self, settings, model, images, clip, prompts):
        self.settings, self.model, self.images = settings, model, images
        self.clip, self.prompts = clip, prompts

    # ---- images and labels --------------------------------------------------------------------------------------------------

    def sources(self):
        """-> list of Labelled. Raises UserError if the labels name none of the images."""
        s = self.settings
        if s.positive:
            return [self._folder(s.positive, True), self._folder(s.negative, False)]
        pairs, indices = self.images.pairs("train", s.n_train_img, self.model)
        if s.fit_direction != "labels":
            return [Labelled(pairs, indices, None)]
        if s.labels:
            table = labels.read_table(s.labels, s.label)
            positive = [table.get(pairs.dataset.name(i)) for i in indices]
        else:
            positive = labels.extremes(self._zero_shot(pairs.dataset, indices), s.n_examples)
        chosen = labels.balanced(positive, s.n_examples)
        if not chosen:
            raise UserError(f"{s.labels} names none of the {len(indices)} images: its column `file` must hold their names")
        return [Labelled(pairs, [indices[i] for i in chosen], [positive[i] for i in chosen])]

    def _folder(self, folder, positive):
        s, dataset = self.settings, open_folder(folder, self.model.image_size)
        indices = list(range(min(len(dataset), s.n_examples)))
        return Labelled(self.images.inverted(dataset, self.model), indices, [positive] * len(indices))

    @torch.no_grad()
    def _zero_shot(self, dataset, indices):
        """Score each image along the text direction from source to target prompt, by CLIP -> list of float."""
        clip, size, scores = self.clip().loss, self.settings.bs_precompute, []
        difference = clip.direction(*self.prompts[0])
        for some in tqdm([indices[i : i + size] for i in range(0, len(indices), size)], desc="reading labels", unit="batch"):
            good, x_0, _ = load_batch(dataset, some)
            likeness = (clip.encode_images(x_0.to(clip.mean.device)) @ difference.T).flatten().tolist() if good else []
            found = dict(zip(good, likeness, strict=True))
            scores += [found.get(i, 0.0) for i in some]
        return scores

    # ---- directions ---------------------------------------------------------------------------------------------------------

    def run(self, t_edit, t_boost):
        """-> list of (Direction, a description for the log)."""
        s = self.settings
        every = self.model.timesteps(s.n_train_step, s.t_0)
        timesteps = [t for t, _ in reversed(training.edit_steps(every, t_edit))]
        sources, positive = self.sources(), []

        def latents():
            for source in sources:
                source.pairs.fill(source.indices, s.bs_precompute, s.re_precompute)
                truth = dict(zip(source.indices, source.positive or [None] * len(source.indices), strict=True))
                batches = source.pairs.batches(source.indices, s.bs_precompute)
                for batch in tqdm(batches, desc="collecting h", unit="batch"):
                    positive.extend(truth[i] for i in batch.indices)
                    yield batch.x_T

        h = fitting.bottlenecks(self.model, latents(), timesteps)
        about = {"fit": s.fit_direction, "n_images": len(positive), "seed": s.seed, "hold": s.hold}
        about |= {"images": digest([source.pairs.names_of_content(source.indices) for source in sources])}
        if s.fit_direction == "labels":
            return [self._from_labels(h, torch.tensor(positive), t_edit, t_boost, every, about)]
        return self._components(h, t_edit, t_boost, every, about)

    def _from_labels(self, h, positive, t_edit, t_boost, every, about):
        s, said = self.settings, f"{int(positive.sum())} positive and {int((~positive).sum())} negative images"
        if s.fit_by == "mean":
            deltas = fitting.mean_difference(h, positive)
        else:
            deltas, accuracy = fitting.boundary_normals(h, positive, s.seed)
            share, figures = positive.float().mean().item(), accuracy.values()
            if accuracy:
                said += f"; accuracy on held-out images {min(figures):.0%} to {max(figures):.0%}"
                said += f", by chance {max(share, 1 - share):.0%}"
            about |= {"accuracy": {str(t): round(value, 4) for t, value in accuracy.items()}}
        deltas = fitting.projected_off(deltas, self._held(deltas))
        about |= {"fit_by": s.fit_by, "positive": int(positive.sum()), "negative": int((~positive).sum())}
        return self._direction(deltas, t_edit, t_boost, every, about, f"labels, {s.fit_by}"), said

    def _held(self, deltas):
        """The directions of --hold, as {t: delta_h} at the same timesteps. Raises UserError for one that is not a delta_h."""
        s, found = self.settings, []
        for name in (s.hold or "").split():
            stored = directions.read(directions.find(name, s.config.data.category, Experiment(s).suffix, None))
            if stored.kind != "delta_h":
                raise UserError(f"--hold {name} is a delta block, which differs per image: fit one with --fit_direction labels")
            function = directions.build(stored, self.model, stored.record.get("ignore_timesteps", False)).function
            found.append({t: function(delta, None, t).detach().cpu() for t, delta in deltas.items()})
        return found

    def _components(self, h, t_edit, t_boost, every, about):
        components, shares = fitting.principal_components(h, self.settings.n_components)
        made = []
        for k, deltas in enumerate(components):
            low, high = (f(share[k].item() for share in shares.values()) for f in (min, max))
            said = f"component {k + 1}: {low:.1%} to {high:.1%} of the variance over the timesteps"
            about_k = about | {"component": k + 1}
            made.append((self._direction(deltas, t_edit, t_boost, every, about_k, f"component {k + 1} of h"), said))
        return made

    def _direction(self, deltas, t_edit, t_boost, every, about, origin):
        s = self.settings
        n_inv = len(self.model.timesteps(s.n_inv_step, s.t_0))
        prompts = self.prompts[0] if self.prompts and s.fit_direction == "labels" else ()
        record = training.new_record(self.model, "delta_h", False, prompts, t_edit, every, n_inv, about, t_boost)
        record |= {"origin": f"fitted: {origin}", "prompts": list(prompts) or None}
        return Direction(hspace.GivenDirection(deltas), record, origin).requires_grad_(False).to(self.model.device)

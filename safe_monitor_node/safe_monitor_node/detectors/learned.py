# SPDX-License-Identifier: Apache-2.0
"""SAFE-MLP and SAFE-LSTM (Gu et al., arXiv 2506.09937, 4.2): learned scores of hidden states.

Each network is defined once. Training and scoring of whole rollouts apply the network to the
concatenated steps of many rollouts. Therefore no padding is multiplied. The streams
(``learned_streams``) apply the same parameters to live steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from safe_monitor_node.detectors.accumulation import Accumulate, AccumulatingDetector
from safe_monitor_node.detectors.base import ArraySpec, Stream
from safe_monitor_node.detectors.learned_streams import (
    LstmStream,
    LstmWindowStream,
    MlpStream,
    StepWeights,
    step_lstms,
    step_mlps,
)
from safe_monitor_node.detectors.networks import ACTIVATIONS, Activation, LstmNetwork, MlpNetwork
from safe_monitor_node.detectors.together import Answer
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# Rollouts in one pass of a network. The number is large enough for speed, and small enough to limit
# memory.
_ROLLOUTS_PER_PASS = 64

OPTIMIZERS = ('adam', 'adamw', 'sgd', 'sgdm')


@dataclass(kw_only=True, eq=False)
class LearnedDetector(AccumulatingDetector):
    """A network over hidden states, trained by the losses of the paper.

    ``epochs`` and the parameters after it control the training
    (:mod:`safe_training.fitting.learned`); they have no effect on the scores of a trained detector.

    Parameters
    ----------
    hidden : int
        Width of the layers.
    layers : int
        Number of layers.
    epochs : int
        Passes over the training rollouts.
    batch_size : int
        Rollouts in a batch.
    optimizer : {'adam', 'adamw', 'sgd', 'sgdm'}
        Optimiser; 'sgdm' is SGD with momentum 0.9.
    learning_rate : float
        Step size.
    weight_decay : float
        Weight decay of 'adamw'.
    schedule_every : int
        Epochs after which the learning rate is multiplied by ``schedule_gamma``.
    schedule_gamma : float
        Factor of the learning rate.
    warmup : int
        Epochs in which the learning rate rises linearly.
    max_grad_norm : float or None
        Norm to which gradients are clipped.
    lambda_fail : float
        Weight of the losses of failures.
    lambda_success : float
        Weight of the losses of successes.
    lambda_reg : float
        Weight of the squared parameters.
    time_weighting : bool
        Give early steps of failures more weight.
    one_loss_per_rollout : bool
        Take the loss of one random step of each rollout instead of the mean over its steps.
    init_weight_scale : float
        Factor of the initial weights.
    seed : int
        Seed of initial weights, batches and dropout.
    """

    needs = frozenset({'features'})

    hidden: int = 256
    layers: int = 1
    epochs: int = 300
    batch_size: int = 512
    optimizer: str = 'adam'
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule_every: int = 300
    schedule_gamma: float = 1.0
    warmup: int = 0
    max_grad_norm: float | None = None
    lambda_fail: float = 1.0
    lambda_success: float = 1.0
    lambda_reg: float = 1e-2
    time_weighting: bool = False
    one_loss_per_rollout: bool = False
    init_weight_scale: float = 1.0
    seed: int = 0

    network_: nn.Module = field(init=False, repr=False)

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('hidden', 'layers', 'epochs', 'batch_size', 'schedule_every')
        self._check_integer('warmup', 'seed', least=0)
        if self.seed >= 2**63:
            raise self._refused('seed', 'an integer below 2**63')
        self._check_choice('optimizer', OPTIMIZERS)
        self._check_number('learning_rate', 'weight_decay', 'schedule_gamma', least=0)
        self._check_number('lambda_fail', 'lambda_success', 'lambda_reg', least=0)
        self._check_number('init_weight_scale', least=0)
        if self.max_grad_norm is not None:
            self._check_number('max_grad_norm', least=0)
        self._check_flag('time_weighting', 'one_loss_per_rollout')

    @abstractmethod
    def build(self, dim: int) -> nn.Module:
        """Return the untrained network for ``dim`` features.

        Initial weights come from PyTorch's global random generator.
        """

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of many rollouts, some of them in one pass of the network."""
        scores: list[np.ndarray] = []
        for start in range(0, len(rollouts), _ROLLOUTS_PER_PASS):
            batch = rollouts[start : start + _ROLLOUTS_PER_PASS]
            flat = torch.from_numpy(np.concatenate([self._checked_features(r) for r in batch]))
            lengths = torch.tensor([len(r) for r in batch])
            with torch.inference_mode():
                padded = self.network_(flat, lengths).numpy()
            scores += [row[: len(r)].copy() for row, r in zip(padded, batch, strict=True)]
        return scores

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters of the network."""
        self._require_fitted()
        return {name: p.detach().numpy().copy() for name, p in self.network_.state_dict().items()}

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`."""
        self.check_params()
        if self.layers > len(state):
            raise self._refused(
                'layers',
                f'at most {len(state)} (the detector has {len(state)} arrays)',
                advice='fit the detector again',
            )
        # Build the network on the meta device first: it uses no memory and no random numbers until
        # the arrays are checked.
        with torch.device('meta'):
            network = self.build(dim)
        specs = {k: ArraySpec(tuple(p.shape), np.float32) for k, p in network.state_dict().items()}
        arrays = self.checked_state(state, specs)
        # `to_empty` would import SymPy: 0.4 s and 34 MB.
        network.load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()}, assign=True)
        self.set_network(network, dim)

    def set_network(self, network: nn.Module, dim: int) -> None:
        """Use a trained network."""
        self.network_ = network.eval().requires_grad_(False)
        self.dim_ = dim


@dataclass(kw_only=True, eq=False)
class SafeMlp(LearnedDetector):
    """SAFE-MLP: a small MLP scores each step alone, and the scores are accumulated over time.

    The paper sums the scores. The sum grows with the length of a task. Therefore scores of
    different tasks cannot be compared (departures.md D39b). The default here is the running mean.

    Parameters
    ----------
    layers : int
        Number of linear layers (1 is linear).
    activation : {'sigmoid', 'relu', 'none'}
        Final activation.
    threshold : float or None
        If it is a number, the loss of failures is ``relu(threshold - S_t)``: it is 0 when the score
        reaches the threshold.
    window : int or None
        If it is a number, the network is trained by multiple-instance learning: only the window of
        this number of steps with the highest mean score decides whether a rollout is a failure.
        Needs ``accumulate`` 'none' and ``activation`` 'sigmoid'.
    """

    name = 'safe_mlp'

    layers: int = 2
    activation: Activation = 'sigmoid'
    accumulate: Accumulate = 'mean'
    threshold: float | None = None
    window: int | None = None

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_choice('activation', tuple(ACTIVATIONS))
        if self.threshold is not None:
            self._check_number('threshold')
        if self.window is not None:
            self._check_window()

    def _check_window(self) -> None:
        self._check_integer('window')
        needed = {
            'accumulate': 'none',
            'activation': 'sigmoid',
            'threshold': None,
            'time_weighting': False,
            'one_loss_per_rollout': False,
        }
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise self._refused(
                    name,
                    f'{value!r} (window is {self.window})',
                    advice=f'set {name}={value}, or remove window',
                )

    def build(self, dim: int) -> MlpNetwork:
        """Return the untrained network for ``dim`` features.

        Initial weights come from PyTorch's global random generator.
        """
        return MlpNetwork(dim, self.hidden, self.layers, self.activation, self.accumulate)

    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        assert isinstance(self.network_, MlpNetwork)
        return MlpStream(self.network_, self.dim_, self.name)

    def step_many(self, streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
        """Score the next step of each stream; several steps are one matrix product per layer."""
        return step_mlps(streams, steps)


@dataclass(kw_only=True, eq=False)
class SafeLstm(LearnedDetector):
    """SAFE-LSTM: an LSTM reads the hidden states so far and gives the probability of failure.

    With ``accumulate`` 'sum' or 'mean', the probabilities are accumulated over time with a stopped
    gradient, and the hinge loss replaces the cross-entropy.

    Parameters
    ----------
    history : int
        -1: the LSTM reads the whole episode so far. n >= 1: at each step the LSTM starts again and
        reads the previous n steps, without the current step (as in the published code).
    dropout : float
        Dropout before the linear head, in training only.
    hard_negative : float
        Weight of the hard-negative loss.
    hard_negative_margin : float
        Margin of the hard-negative loss around 0.5.
    hard_negative_beta : float
        Sharpness of the soft maximum in the hard-negative loss; 0 or less uses the true maximum.
    """

    name = 'safe_lstm'

    history: int = -1
    dropout: float = 0.0
    hard_negative: float = 0.0
    hard_negative_margin: float = 0.1
    hard_negative_beta: float = 50.0
    learning_rate: float = 3e-4

    step_weights_: StepWeights = field(init=False, repr=False)

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('history', least=-1)
        if self.history == 0:
            raise self._refused('history', '-1 (the whole episode) or an integer of at least 1')
        self._check_number('dropout', 'hard_negative', least=0)
        self._check_number('hard_negative_margin', 'hard_negative_beta')
        if not self.dropout < 1:
            raise self._refused('dropout', 'a number of at least 0 and below 1')

    def build(self, dim: int) -> LstmNetwork:
        """Return the untrained network for ``dim`` features.

        Initial weights come from PyTorch's global random generator.
        """
        return LstmNetwork(
            dim, self.hidden, self.layers, self.history, self.dropout, self.accumulate
        )

    def set_network(self, network: nn.Module, dim: int) -> None:
        """Take a trained network for ``dim`` features."""
        super().set_network(network, dim)
        assert isinstance(network, LstmNetwork)
        self.step_weights_ = StepWeights(network)

    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        assert isinstance(self.network_, LstmNetwork)
        if self.history < 0:
            return LstmStream(self.step_weights_, self.dim_, self.name)
        return LstmWindowStream(self.network_, self.dim_, self.name)

    def step_many(self, streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
        """Score the next step of each stream.

        Several steps are two matrix products per layer, unless ``history`` limits the steps.
        """
        return step_lstms(streams, steps)

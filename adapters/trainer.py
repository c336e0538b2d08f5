"""Two levels in `transformers.Trainer`, and in trainers that are built on it."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset, random_split
from transformers import Trainer, TrainerCallback

from adapters.training.partition import levels
from adapters.training.problems import Penalty, two_level
from blo import Clip, Engine, Method, Status
from blo.engine import Total
from blo.steps.registry import unwrapped
from blo.streams import BatchStream

__all__ = ["TwoLevelMixin", "TwoLevelTrainer"]

STATE = "two_level.pt"

# Their loss is no function of a batch: they generate within a step, or step by themselves.
GENERATING = {
    "AsyncGRPOTrainer",
    "DistillationTrainer",
    "GKDTrainer",
    "GRPOTrainer",
    "NashMDTrainer",
    "OnlineDPOTrainer",
    "PPOTrainer",
    "RLOOTrainer",
    "XPOTrainer",
}
# What trainers of TRL count while they compute a loss, for their logs.
COUNTS = ("_metrics", "_stored_metrics", "_total_train_tokens")


class MicroBatch(NamedTuple):
    """One of the batches whose gradients are accumulated for an update.

    Attributes:
        inputs: What the collator returned.
        num_items: What Trainer normalises the losses of the whole update by, if it does.
        of: The number of batches of the update.
    """

    inputs: Mapping[str, Any]
    num_items: Tensor | int | None
    of: int


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class TwoLevelMixin(_Base):
    """Trains an adapter on two levels inside any subclass of `transformers.Trainer`.

    min over the upper parameters x of the loss on `upper_dataset` at y*(x), where y*(x) minimises
    the loss on ``train_dataset`` over the lower parameters; `adapters.levels` says which they are.
    Trainer's steps are the lower level's: its optimizer, schedule, clipping and accumulation, its
    ``max_steps`` and epochs, count and train the lower parameters alone. After each `steps` of them
    the upper parameters take one, along the hypergradient of `method`.

    Written first among the bases: ``class TwoLevelSFTTrainer(TwoLevelMixin, SFTTrainer)``.

    The logs of the training loss hold also ``upper_loss`` (the mean since the last log),
    ``upper_learning_rate``, ``hypergradient_norm`` and, where the method solves a linear system,
    ``response_converged`` (the share of responses that did) and ``response_residual``. Checkpoints
    hold the upper level's optimizer, schedule, place in its data and the state of the method, in
    ``two_level.pt``; going on from one is bit-identical on a CPU.

    In several processes (torchrun, accelerate launch) each takes its share of both data sets and
    draws its own masks; the engine averages over them, and the model is not wrapped in
    ``DistributedDataParallel``. ``two_level_1.pt`` ... are the other processes' parts.

    Args:
        upper_dataset: Held-out data, prepared and collated as ``train_dataset`` is; or the share of
            ``train_dataset``, in (0, 1), that is split off for it (with ``data_seed`` or ``seed``).
        upper_optimizer: Holds ``levels(model).upper``; a function of these parameters that returns
            one; or a pair of an optimizer and its scheduler (stepped once an upper update, None for
            none). By default an optimizer of the kind, rate and options of Trainer's, without
            weight decay. Without a pair its rate follows Trainer's: it is the fraction of its own
            that the last lower step was taken at.
        method: How the lower solution responds to the upper parameters; None for ``darts()``.
        steps: Lower updates for each upper one.
        penalty: Added to the lower loss: a function of the model, or several.
        upper_penalty: Added to the upper loss.
        upper_compute_loss: The upper loss, ``upper_compute_loss(model, inputs)``, a mean over the
            batch; None for Trainer's ``compute_loss``, normalised as Trainer does.

    Raises:
        ValueError: Naming what is missing or contradicts itself, when the trainer is made or when
            training begins.
        NotImplementedError: Naming what two levels do not work with: DeepSpeed, FSDP, fp16,
            ``torch_compile``, ``DataParallel``, reentrant checkpointing, trainers that generate
            within a step.

    Example:
        >>> from adapters.trainer import TwoLevelMixin
        >>> from transformers import Trainer
        >>> class TwoLevelTrainer(TwoLevelMixin, Trainer):
        ...     '''Two levels in Trainer itself.'''
    """

    # Trainer's own; typed here as this class is a subclass of nothing.
    args: Any
    model: Any
    optimizer: Any
    train_dataset: Any

    def __init__(
        self,
        *args: Any,
        upper_dataset: Any = None,
        upper_optimizer: Any = None,
        method: Method | None = None,
        steps: int = 1,
        penalty: Penalty | Sequence[Penalty] = (),
        upper_penalty: Penalty | Sequence[Penalty] = (),
        upper_compute_loss: Callable[[nn.Module, Mapping[str, Any]], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_share(upper_dataset)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
        _refuse_generating(type(self))
        super().__init__(*args, **kwargs)
        _refuse(self)
        # The engine averages over the processes, in place of DistributedDataParallel.
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )
        self.upper_dataset = self._prepared(upper_dataset)
        self.upper_optimizer = upper_optimizer
        self.method = method
        self.steps = steps
        self.penalty = penalty
        self.upper_penalty = upper_penalty
        self.upper_compute_loss = upper_compute_loss
        self._engine: Engine | None = None
        self._waiting: list[tuple[Mapping[str, Any], Any]] = []
        self._resumed: dict[str, Any] | None = None
        self._counting = self._watched = False
        self._upper_totals: list[Total] = []
        self._upper_optimizer: Optimizer | None = None
        self._share_of_rate = 1.0
        self.add_callback(_Levels(self))

    # What Trainer asks for.

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Trainer's optimizer, of the lower parameters alone."""
        with _held_fixed(levels(self.model).upper):
            return super().create_optimizer(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Fill the gradients of the lower parameters once all batches of the update are there."""
        assert self._engine is not None
        self._waiting.append((inputs, num_items_in_batch))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        waiting, self._waiting = self._waiting, []
        batches = [MicroBatch(i, n, len(waiting)) for i, n in waiting]
        self._engine.graph.probe(self._engine.graph["lower"], batches[0])
        if self._engine.round == 0 and self._engine.turn.step == 1:
            self._warn_of_scaled_loss(batches[0])
        self._share_of_rate = _share_of_rate(self.optimizer)
        with _replaced(self, "_counting", True):
            total = self._engine.backward("lower", batches)
        return torch.tensor(total.loss, device=self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what the upper level did since the last log of the training loss."""
        if "loss" in logs and self._upper_totals:
            logs = {**logs, **self._upper_logs()}
            self._upper_totals = []
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._engine is not None:
            state = {
                "engine": self._engine.state_dict(),
                "data": self._upper_stream.state_dict(),
                "processes": self.args.world_size,
            }
            path = Path(output_dir) / self._state_name()
            path.parent.mkdir(parents=True, exist_ok=True)  # where the first process is not yet
            torch.save(state, path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.is_file():
            raise ValueError(
                f"resume_from_checkpoint {checkpoint!r} has no {STATE}, which holds the upper "
                "level's optimizer and data position: it was not written by a two-level trainer, "
                "or with save_only_model=True. Load the adapter from it with PEFT, and train anew"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        then, now = state.get("processes", 1), self.args.world_size
        if then != now:
            raise ValueError(
                f"resume_from_checkpoint {checkpoint!r} was written by {then} processes, and there "
                f"are {now}, which would see other batches; start as many, or load the adapter "
                "from it with PEFT, and train anew"
            )
        if self.args.process_index:
            path = Path(checkpoint) / self._state_name()
            state = torch.load(path, map_location="cpu", weights_only=True)
        self._resumed = state

    def _state_name(self) -> str:
        """The file in a checkpoint that holds this process's part."""
        rank = self.args.process_index
        return f"{Path(STATE).stem}_{rank}.pt" if rank else STATE

    # The two levels.

    def _begin(self) -> None:
        """Make the two problems, once Trainer has prepared model, optimizer and schedule."""
        self._check_saving()
        upper, scheduler = self._upper_level()
        clipping = self.args.max_grad_norm
        graph = two_level(
            self.model,
            loss=self._loss,
            upper_batches=None,
            lower_batches=None,
            upper_optimizer=upper,
            lower_optimizer=self.optimizer,
            method=self.method,
            penalty=self.penalty,
            upper_penalty=self.upper_penalty,
            upper_loss=self._upper_loss if self.upper_compute_loss else None,
            steps=self.steps,
            upper_scheduler=scheduler,
            clip=Clip(norm=clipping) if clipping else None,
        )
        self._engine = Engine(graph)  # accelerate runs the model under autocast
        self._upper_stream = BatchStream(self._upper_dataloader(), "upper")
        self._waiting, self._upper_totals = [], []
        self._watched = False
        if self.args.world_size > 1:  # until here all drew alike; dropout is each process's own
            torch.manual_seed(self.args.seed + 1_000_003 * (1 + self.args.process_index))
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self._engine.load_state_dict(resumed["engine"])
            self._upper_stream.load_state_dict(resumed["data"])

    def _upper_update(self) -> None:
        """Take the upper level's step where it is its turn."""
        assert self._engine is not None
        if self._engine.turn.problem != "upper":
            return
        number = self.args.gradient_accumulation_steps
        drawn = iter(self._upper_stream.next, None)
        samples, items = self.get_batch_samples(drawn, number, self.args.device)
        batches = [MicroBatch(s, items, number) for s in samples]
        if not isinstance(self.upper_optimizer, tuple):
            _set_rate(self._engine.graph["upper"].optimizer, self._share_of_rate)
        self._upper_totals.append(self._engine.step("upper", batches))

    def _loss(self, batch: MicroBatch) -> Tensor:
        """What Trainer would differentiate for one batch, times the number of batches, of which the
        engine takes the mean.
        """
        taken: list[Tensor] = []
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        with (
            _replaced(self.accelerator, "backward", lambda loss, **_: taken.append(loss)),
            _replaced(self, "current_gradient_accumulation_steps", batch.of),
            self._counts_kept(),
            self._gradients_watched() as untouched,
        ):
            super().training_step(self.model_wrapped, {**batch.inputs}, batch.num_items)
        for parameter, flag in flags:  # DPO switches the adapter off and on within its loss
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        if len(taken) != 1:
            raise NotImplementedError(
                f"training_step of {type(self).__name__} must hand one loss to "
                f"accelerator.backward, got {len(taken)}: two levels differentiate the loss "
                "themselves; override compute_loss in place of training_step"
            )
        if not all(untouched):
            raise NotImplementedError(
                f"training_step of {type(self).__name__} changes gradients, which two levels take "
                "from the loss after it; add to the loss in compute_loss, or clip by max_grad_norm"
            )
        (loss,) = taken
        return loss if batch.of == 1 else loss * batch.of

    def _warn_of_scaled_loss(self, batch: MicroBatch) -> None:
        """Warn where Trainer multiplies the loss by the number of processes in place of dividing it
        by what all of them have counted: the model takes that number and leaves it unused.
        """
        args, number = self.args, batch.num_items
        if args.world_size == 1 or number is None or not args.average_tokens_across_devices:
            return
        losses = []
        for count in (number, 2 * number):
            with torch.no_grad(), torch.random.fork_rng(), self._counts_kept():
                inputs = self._prepare_inputs({**batch.inputs})
                with self.compute_loss_context_manager():
                    taken = self.compute_loss(self.model_wrapped, inputs, num_items_in_batch=count)
                losses.append(float(taken[0] if isinstance(taken, tuple) else taken))
        if losses[0] == losses[1] != 0.0:
            warnings.warn(
                f"the loss of {type(self.model).__name__} does not depend on num_items_in_batch, "
                f"which its forward pass takes, so that Trainer multiplies it by {args.world_size},"
                " the number of processes; give average_tokens_across_devices=False",
                stacklevel=2,
            )

    def _upper_loss(self, batch: MicroBatch) -> Tensor:
        assert self.upper_compute_loss is not None
        self.model.train()
        with self._counts_kept(), self.compute_loss_context_manager():
            return self.upper_compute_loss(
                self.model_wrapped, self._prepare_inputs({**batch.inputs})
            )

    @contextmanager
    def _gradients_watched(self) -> Iterator[list[bool]]:
        """Whether a ``training_step`` leaves gradients alone, which it is given as zeros in the
        first step: what it does to them after the loss is no part of what is differentiated.
        """
        untouched: list[bool] = []
        if self._watched:
            yield untouched
            return
        given = {p: torch.zeros_like(p) for p in self.model.parameters() if p.requires_grad}
        for parameter, zeros in given.items():
            parameter.grad = zeros
        try:
            yield untouched
            untouched += [p.grad is zeros and not zeros._version for p, zeros in given.items()]
        finally:
            for parameter in given:
                parameter.grad = None
        self._watched = all(untouched)

    @contextmanager
    def _counts_kept(self) -> Iterator[None]:
        """Keep what trainers of TRL count as it is, but in the first evaluation of a lower batch:
        the others are the engine's.
        """
        kept = {
            name: deepcopy(getattr(self, name))
            for name in COUNTS
            if not self._counting and hasattr(self, name)
        }
        yield
        for name, value in kept.items():
            setattr(self, name, value)

    def _upper_level(self) -> tuple[Optimizer, Any]:
        """The upper level's optimizer and scheduler."""
        given, parameters = self.upper_optimizer, levels(self.model).upper
        if isinstance(given, tuple):
            return given
        if isinstance(given, Optimizer):
            return given, None
        if given is not None:
            return given(parameters), None
        if self._upper_optimizer is None or not _holds(self._upper_optimizer, parameters):
            self._upper_optimizer = _alike(self.optimizer, parameters)
        return self._upper_optimizer, None

    def _upper_dataloader(self) -> Iterable[Any]:
        """The upper data as Trainer loads its training data."""
        with _replaced(self, "train_dataset", self.upper_dataset):
            return self.get_train_dataloader()

    def _prepared(self, given: Any) -> Any:
        """The upper data, tokenized and packed as the trainer has done with its training data."""
        if not isinstance(given, float):
            prepare = getattr(self, "_prepare_dataset", None)
            if prepare is None or getattr(self, "_skip_prepare_dataset", False):
                return given
            known = {
                "dataset": given,
                "processing_class": self.processing_class,
                "args": self.args,
                "packing": getattr(self.args, "packing", False),
                "formatting_func": getattr(self, "_formatting_func", None),
                "dataset_name": "upper",
            }
            prepared = prepare(**{name: known[name] for name in signature(prepare).parameters})
            return self._with_references(prepared)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if hasattr(self.train_dataset, "train_test_split"):
            parts = self.train_dataset.train_test_split(test_size=given, seed=seed)
            self.train_dataset = parts["train"]
            return parts["test"]
        if isinstance(self.train_dataset, IterableDataset) or not hasattr(
            self.train_dataset, "__len__"
        ):
            raise ValueError(
                f"upper_dataset={given} splits a share off train_dataset, which has no length "
                f"({type(self.train_dataset).__name__}); pass a dataset as upper_dataset"
            )
        size = len(self.train_dataset)
        number = round(given * size)
        if not 0 < number < size:
            raise ValueError(
                f"upper_dataset={given} leaves {number} of {size} examples for the upper level and "
                f"{size - number} for the lower one; both need some"
            )
        generator = torch.Generator().manual_seed(seed)
        parts = random_split(self.train_dataset, [size - number, number], generator)
        self.train_dataset = parts[0]
        return parts[1]

    def _with_references(self, dataset: Any) -> Any:
        """The upper data with what TRL computes of the reference beforehand, where it does."""
        compute = getattr(self, "_precompute_ref_logps", None)
        if compute is None or not self.args.precompute_ref_log_probs:
            return dataset
        size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        return compute(dataset, "upper", size)

    def _check_saving(self) -> None:
        """Raise where a checkpoint would be taken between two steps that the method takes again."""
        history = 0 if self.method is None else self.method.requirements.history
        if history == 0 or self.steps == 1:
            return
        kind = str(getattr(self.args.save_strategy, "value", self.args.save_strategy))
        epochs = math.ceil(self.state.max_steps / max(1, self.state.num_train_epochs))
        every = {"steps": self.state.save_steps, "epoch": epochs}.get(kind)
        if kind == "best":
            by_steps = "steps" in str(self.args.eval_strategy)
            every = self.state.eval_steps if by_steps else epochs
        if every is not None and every % self.steps:
            raise ValueError(
                f"checkpoints would be saved every {every} steps (save_strategy={kind!r}), within "
                f"a round of {self.steps} lower steps that {self.method!r} takes again: save every "
                f"multiple of {self.steps} steps (save_strategy='steps', save_steps=...)"
            )

    def _upper_logs(self) -> dict[str, float]:
        assert self._engine is not None
        totals = self._upper_totals
        size = torch.nn.utils.get_total_norm([g for g in totals[-1].value if g is not None])
        found = {
            "upper_loss": sum(t.loss for t in totals) / len(totals),
            "upper_learning_rate": self._engine.graph["upper"].learning_rate(),
            "hypergradient_norm": float(size),
        }
        infos = [i for t in totals for i in t.infos.values() if i.status is not None]
        if infos:
            converged = sum(i.status is Status.CONVERGED for i in infos)
            found["response_converged"] = converged / len(infos)
            found["response_residual"] = infos[-1].residual
        return found


class TwoLevelTrainer(TwoLevelMixin, Trainer):
    """`transformers.Trainer` for a bi-level adapter; see `TwoLevelMixin` for the arguments.

    Example:
        >>> import tempfile, torch
        >>> from adapters import BiLoraConfig
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> bert = BertConfig(vocab_size=20, intermediate_size=8, **sizes)
        >>> model = BertForSequenceClassification(bert)
        >>> adapter = BiLoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
        >>> model = get_peft_model(model, adapter)
        >>> data = [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(16)]
        >>> folder = tempfile.mkdtemp()
        >>> args = TrainingArguments(folder, max_steps=4, use_cpu=True, report_to="none",
        ...     disable_tqdm=True, save_strategy="no", logging_steps=4)
        >>> trainer = TwoLevelTrainer(model, args, train_dataset=data, upper_dataset=data[:8])
        >>> trained = trainer.train()  # doctest: +ELLIPSIS
        {'loss': ...
        >>> sorted(k for k in trainer.state.log_history[0] if "upper" in k or "hyper" in k)
        ['hypergradient_norm', 'upper_learning_rate', 'upper_loss']
    """


class _Levels(TrainerCallback):
    """Tells a two-level trainer when training begins and when a lower step was taken."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer._upper_update()


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for the time of a block."""
    own = vars(owner)
    absent = object()
    before = own.get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _held_fixed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Take the parameters for frozen in a block."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _alike(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Return an optimizer of the same kind and options for other parameters, without weight
    decay.
    """
    kind = type(unwrapped(optimizer))
    options = {**unwrapped(optimizer).defaults, "weight_decay": 0.0}
    taken = signature(kind).parameters
    return kind(parameters, **{name: v for name, v in options.items() if name in taken})


def _holds(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether an optimizer holds these parameters: ``model_init`` makes others."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return held == {id(p) for p in parameters}


def _share_of_rate(optimizer: Optimizer) -> float:
    """Return the fraction of its first learning rate that an optimizer takes its steps at."""
    group = optimizer.param_groups[0]
    rate, first = group.get("lr"), group.get("initial_lr", optimizer.defaults.get("lr"))
    return 1.0 if rate is None or not first else float(rate) / float(first)


def _set_rate(optimizer: Optimizer, share: float) -> None:
    """Let an optimizer take its steps at a share of its first learning rates."""
    for group in optimizer.param_groups:
        first = group.setdefault("initial_lr", group.get("lr"))
        if first is not None:
            group["lr"] = share * first


def _check_share(upper_dataset: Any) -> None:
    if upper_dataset is None:
        raise ValueError(
            "upper_dataset must be given: held-out data for the upper level, or the share of "
            "train_dataset to split off for it, such as 0.2"
        )
    number = isinstance(upper_dataset, (int, float)) and not isinstance(upper_dataset, bool)
    if number and not (isinstance(upper_dataset, float) and 0 < upper_dataset < 1):
        raise ValueError(
            f"upper_dataset must be a dataset or a share in (0, 1), got {upper_dataset}"
        )


def _refuse_generating(kind: type) -> None:
    for name in [c.__name__ for c in kind.__mro__ if c.__name__ in GENERATING]:
        raise NotImplementedError(
            f"{kind.__name__} trains two levels, which does not work with {name}, whose loss is no "
            "function of a batch: it generates, or steps by itself; use SFTTrainer, DPOTrainer or "
            "another trainer of a fixed data set"
        )


def _refuse(trainer: Any) -> None:
    """Raise for what two levels do not work with."""
    args = trainer.args
    checkpointing = (args.gradient_checkpointing and args.gradient_checkpointing_kwargs) or {}
    for found, what, remedy in (
        (trainer.is_deepspeed_enabled, "DeepSpeed", "plain data parallel"),
        (trainer.is_fsdp_enabled, "FSDP", "plain data parallel"),
        (args.n_gpu > 1, f"DataParallel over {args.n_gpu} devices", "CUDA_VISIBLE_DEVICES=0"),
        (
            getattr(args, "parallelism_config", None) is not None,
            "parallelism_config (tensor, context or sequence parallel)",
            "plain data parallel",
        ),
        (args.fp16, "fp16, whose loss scaling it does not know", "bf16=True"),
        (args.torch_compile, "torch_compile", "torch_compile=False"),
        (args.auto_find_batch_size, "auto_find_batch_size", "a fixed batch size"),
        (
            checkpointing.get("use_reentrant"),
            "reentrant checkpointing, which torch.autograd.grad cannot pass",
            "gradient_checkpointing_kwargs={'use_reentrant': False}",
        ),
        (
            any(name in str(args.optim) for name in ("lomo", "galore", "apollo", "layerwise")),
            f"optim={str(args.optim)!r}, which steps in the backward pass or on projections",
            "optim='adamw_torch'",
        ),
    ):
        if found:
            raise NotImplementedError(
                f"{type(trainer).__name__} trains two levels, which does not work with {what}; use "
                f"{remedy}"
            )

"""A LightningModule with manual optimisation: its training step asks the engine for gradients."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from blo import Engine, Problem, ProblemGraph

torch.manual_seed(0)
x, held_out, truth = torch.randn(256, 8), torch.randn(64, 8), torch.randn(8, 1)
source = torch.arange(256) % 2
y = torch.where(source[:, None] == 0, x @ truth, 3 * torch.randn(256, 1))  # the second is noise


class Sources(lightning.LightningModule):
    """A linear model, and how far each source of its data is trusted."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.trust = torch.nn.Linear(8, 1), torch.nn.ParameterList([torch.zeros(2)])

    def lower_loss(self, batch):
        errors = (self.model(batch[0]) - batch[1]).square().squeeze(1)
        return (2 * self.trust[0].softmax(0)[batch[2]] * errors).mean()

    def upper_loss(self, _):
        return (self.model(held_out) - held_out @ truth).square().mean()

    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.model.parameters(), 0.1)
        adam = torch.optim.Adam(self.trust.parameters(), 0.1)
        upper = Problem("trust", self.upper_loss, self.trust, adam, [None])
        lower = Problem("model", self.lower_loss, self.model, sgd, None, reads=["trust"])
        self.engine = Engine(ProblemGraph([upper, lower]))
        return sgd, adam

    def training_step(self, batch):
        for name, batches, optimizer in zip(
            ("model", "trust"), ([batch], None), self.optimizers(), strict=True
        ):
            self.log(name, self.engine.backward(name, batches).loss)
            optimizer.step()


loader = DataLoader(TensorDataset(x, y, source), batch_size=32, shuffle=True)
module = Sources()
lightning.Trainer(max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False).fit(module, loader)  # fmt: skip
print("trust in the sources", *(f"{t:.3f}" for t in module.trust[0].softmax(0).tolist()))

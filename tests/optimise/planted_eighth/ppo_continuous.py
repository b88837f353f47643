"""PPO with a GPU-vectorised simulator (Isaac-style: observations stay on the device)."""
import pathlib
import torch
from torch import nn
from torch.distributions import Normal

from sim import GpuVecEnv


class ActorCritic(nn.Module):
    def __init__(self, n_obs, n_act, width=256):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(n_obs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.mu = nn.Linear(width, n_act)
        self.value = nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.zeros(n_act))

    def forward(self, obs):
        h = self.trunk(obs)
        return self.mu(h), self.log_std.exp(), self.value(h).squeeze(-1)


class Meter:
    def __init__(self):
        self.total, self.n = 0.0, 0

    def add(self, x):
        self.total += float(x)
        self.n += 1

    @property
    def avg(self):
        return self.total / max(self.n, 1)


class Agent:
    def __init__(self, env, horizon=32, epochs=5, minibatches=4, folder="ppo_run"):
        self.env, self.T, self.epochs, self.mb = env, horizon, epochs, minibatches
        self.net = ActorCritic(env.n_obs, env.n_act).cuda()
        self.act = torch.compile(self.net)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=3e-4, fused=True)
        self.folder = pathlib.Path(folder)
        self.loss_meter = Meter()

    @torch.no_grad()
    def collect(self, obs):
        store = []
        for _ in range(self.T):
            mu, std, val = self.act(obs)
            pi = Normal(mu, std, validate_args=False)
            a = pi.sample()
            nxt, rew, done = self.env.step(a)
            store.append((obs, a, pi.log_prob(a).sum(-1), val, rew, done.float()))
            obs = nxt
        last = self.act(obs)[2]
        O, A, LP, V, R, D = (torch.stack(x) for x in zip(*store))
        adv, run = torch.zeros_like(R), torch.zeros_like(last)
        for t in reversed(range(self.T)):
            nv = last if t == self.T - 1 else V[t + 1]
            delta = R[t] + 0.99 * nv * (1 - D[t]) - V[t]
            run = delta + 0.99 * 0.95 * (1 - D[t]) * run
            adv[t] = run
        return obs, [x.flatten(0, 1) for x in (O, A, LP, adv, adv + V)]

    def loss(self, o, a, lp, adv, ret):
        mu, std, v = self.net(o)
        ratio = (Normal(mu, std, validate_args=False).log_prob(a).sum(-1) - lp).exp()
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        pg = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        return pg + 0.5 * (v - ret).pow(2).mean()

    def update(self, data):
        loss_fn = torch.compile(lambda *xs: self.loss(*xs))
        for _ in range(self.epochs):
            for idx in torch.randperm(len(data[0]), device="cuda").chunk(self.mb):
                loss = loss_fn(*(x[idx] for x in data))
                self.opt.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.opt.step()
                self.loss_meter.add(loss.detach())

    def dump(self, it):
        self.folder.mkdir(exist_ok=True)
        blob = dict(net=self.net.state_dict(), opt=self.opt.state_dict(), it=it)
        with (self.folder / "agent.pt").open("wb") as fh:
            torch.save(blob, fh)

    def learn(self, iters):
        obs = self.env.reset()
        for it in range(iters):
            obs, data = self.collect(obs)
            self.update(data)
            if it % 100 == 0:
                print(it, self.loss_meter.avg)
                self.dump(it)


if __name__ == "__main__":
    Agent(GpuVecEnv("Ant", 4096)).learn(5000)

"""Makes metrics.json, fidelity.json, knn.json and probe.json: scores, neighbours and a classifier's accuracy from
NumPy, SciPy, torch-fidelity and scikit-learn on hashed features, for `trainer/src/eval`."""

import numpy as np
import scipy.linalg
import torch
from make import hashed, write
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import LinearSVC
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def features(name, *shape):
    return hashed(name, shape).numpy()


def fid(a, b):
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    between = a.mean(0) - b.mean(0)
    return between @ between + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)


def inception_score(p, splits):
    parts = np.split(p, splits)
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]
    return np.mean(scores), np.std(scores)


def kid(x, y, size):
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    scores = []
    for i in range(min(len(x), len(y)) // size):
        a, b = x[i * size :][:size], y[i * size :][:size]
        scores.append(off(kernel(a, a)) + off(kernel(b, b)) - 2 * kernel(a, b).mean())
    return np.mean(scores), np.std(scores)


def prdc(real, fake, k):
    radii = lambda x: np.sort(pairwise_distances(x), 1)[:, k]
    real_radii, fake_radii = radii(real), radii(fake)
    d = pairwise_distances(real, fake)
    inside = d < real_radii[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (d < fake_radii).any(1).mean(),
        "density": inside.sum() / k / len(fake),
        "coverage": (d.min(1) < real_radii).mean(),
    }


def two_sets():
    real = np.tanh(features("real", 700, 24)) * 3
    return real, features("fake", 600, 24) * 2.6 + 0.25, features("logits", 600, 10) * 4


def metrics():
    real, fake, logits = two_sets()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    is_mean, is_std = inception_score(p, 4)
    kid_mean, kid_std = kid(real, fake, 150)
    out = {"fid": fid(real, fake), "is_mean": is_mean, "is_std": is_std, "kid_mean": kid_mean, "kid_std": kid_std}
    out["kid_whole"] = kid(real[:600], fake, 600)[0]
    return {k: float(v) for k, v in (out | prdc(real, fake, 5)).items()}


def fidelity():
    """The scores that torch-fidelity has too. It draws the subsets of KID at random: here all of both sets."""
    real, fake, logits = map(torch.from_numpy, two_sets())
    inception = isc_features_to_metric(logits, splits=4, shuffle=False)
    statistics = map(fid_features_to_statistics, (real, fake))
    kid = kid_features_to_metric(real[:600], fake, kid_subsets=1, kid_subset_size=600, verbose=False)
    prc = prc_features_to_metric(fake, real, prc_neighborhood=5, verbose=False)
    return {
        "fid": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
        "is_mean": inception["inception_score_mean"],
        "is_std": inception["inception_score_std"],
        "kid_whole": kid["kernel_inception_distance_mean"],
        "precision": float(prc["precision"]),
        "recall": float(prc["recall"]),
    }


def knn():
    normalise = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    train = normalise(features("knn.train", 400, 20).astype(np.float32).astype(np.float64))
    test = normalise(features("knn.test", 60, 20).astype(np.float32).astype(np.float64))
    labels = np.arange(400) * 7 % 5
    out = {}
    for metric in ("l1", "l2", "cosine"):
        find = NearestNeighbors(n_neighbors=50, metric=metric, algorithm="brute").fit(train)
        distances, rows = find.kneighbors(test)
        votes = {}
        for k in (1, 5, 25, 50):
            predictions = []
            for d, r in zip(distances[:, :k], rows[:, :k]):
                score, first = np.zeros(5), np.full(5, np.inf)
                for rank, (distance, row) in enumerate(zip(d, r)):
                    score[labels[row]] += np.exp((1 - distance) / 0.07) if metric == "cosine" else 1
                    first[labels[row]] = min(first[labels[row]], rank)
                predictions.append(int(min(range(5), key=lambda c: (-score[c], first[c]))))
            votes[k] = predictions
        out[metric] = {"rows": rows.tolist(), "votes": votes}
    return out


def probe():
    """Three overlapping classes, so that the best linear classifier is far from perfect."""
    def split(name, rows):
        y = np.arange(rows) % 3
        return (np.eye(3)[y] @ features("probe.centres", 3, 6) + features(name, rows, 6) * 1.2).astype(np.float32), y

    (x, y), (test_x, test_y) = split("probe.train", 6000), split("probe.test", 4000)
    fit = LogisticRegression(C=1e9, tol=1e-8, max_iter=10000).fit(x, y)
    score = lambda fit, test_x: 100 * float((fit.predict(test_x) == test_y).mean())
    mean, deviation = x.mean(0, dtype=float), np.sqrt(x.var(0, dtype=float) + 1e-5)
    svm = LinearSVC(C=0.01, dual=False, tol=1e-10, max_iter=100000).fit((x - mean) / deviation, y)
    return {
        "top1": score(fit, test_x),
        "svm": {
            "weight": np.concatenate([svm.coef_, svm.intercept_[:, None]], 1).tolist(),
            "top1": score(svm, (test_x - mean) / deviation),
        },
        "mlp": mlp(),
    }


def mlp():
    """Scores and a gradient of Deep InfoMax's classifier, without dropout, in training and after one batch."""
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    )
    net = net.float()
    for i, weight in enumerate(net.parameters()):
        weight.data = hashed(f"mlp.{i}", tuple(weight.shape)).float()
    x, y = hashed("mlp.x", (8, 6)).float(), torch.arange(8) % 3
    scores = net(x)
    torch.nn.functional.cross_entropy(scores, y).backward()
    flat = lambda t: t.detach().flatten().tolist()
    return {"scores": flat(scores), "gradient": flat(net[0].weight.grad), "stored": flat(net.eval()(x))}


if __name__ == "__main__":
    write("metrics", metrics())
    write("fidelity", fidelity())
    write("knn", knn())
    write("probe", probe())

"""What the paper prints (its table 1): accuracy in per cent with the standard deviation over five parts."""

from __future__ import annotations

# Clean, AutoPGD, FGSM; then the same on the images that the base gets right when clean.
COLUMNS = ("clean", "AutoPGD", "FGSM", "clean*", "AutoPGD*", "FGSM*")
TABLE1: dict[str, tuple[tuple[float, float], ...]] = {
    "base": ((91.2, 0.8), (4.6, 0.4), (17.1, 0.3), (100.0, 0.0), (0.0, 0.0), (13.0, 0.6)),
    "fx-a": ((87.5, 0.2), (81.1, 0.8), (41.7, 1.5), (93.8, 0.4), (95.1, 0.4), (45.2, 1.0)),
    "fx-b": ((67.3, 0.5), (74.6, 0.9), (45.6, 0.6), (71.4, 0.4), (75.7, 1.3), (48.4, 1.2)),
    "adv train": ((79.5, 0.8), (77.5, 0.5), (72.1, 0.4), (84.4, 0.4), (79.4, 0.7), (75.4, 0.7)),
    "denoise": ((75.6, 0.5), (73.2, 0.9), (69.4, 0.7), (80.3, 0.4), (77.3, 0.8), (72.9, 0.5)),
    "drn": ((88.4, 0.4), (13.9, 0.8), (39.9, 1.0), (94.8, 0.1), (10.1, 0.3), (37.8, 1.1)),
}

"""Tissue constants of MRI, CT and X-ray, and the parameters of their acquisitions.

Values of organs start from the literature; lesions are exaggerated, as after contrast medium, because every
lesion must be visible in every organ and acquisition.
"""

# By column:
# - proton density (water 1), T1 and T2 in ms at 1.5 T after Stanisz et al. 2005 and Bernstein et al.,
#   "Handbook of MRI Pulse Sequences"; parenchyma with the short T1 after gadolinium;
# - Hounsfield units, portal venous phase;
# - attenuation relative to water at about 60 keV; lesions with the values of contrast medium.
_TISSUES: dict[str, tuple[float, float, float, float, float]] = {
    "fat": (0.90, 260, 75, -95, 0.9),
    "muscle": (0.68, 900, 40, 50, 1.0),
    "viscera": (0.62, 700, 48, 30, 1.0),
    "bowel": (0.70, 800, 60, 45, 0.96),
    "bone": (0.50, 420, 55, 380, 1.7),
    "rib": (0.12, 500, 40, 650, 1.8),
    "lung": (0.14, 900, 40, -800, 0.3),
    "heart": (0.72, 480, 50, 85, 1.06),
    "liver": (0.70, 560, 45, 90, 1.06),
    "spleen": (0.74, 620, 75, 95, 1.06),
    "kidney": (0.76, 420, 66, 105, 1.06),
    "bladder": (0.75, 4200, 160, 80, 1.06),
    "cyst": (1.00, 2000, 400, -15, 2.7),
    "tumor": (1.00, 240, 110, 480, 3.4),
    "rim": (1.00, 230, 150, 520, 3.8),
    "pus": (0.10, 2500, 40, -120, 0.2),
    "blood": (0.98, 220, 160, 480, 3.4),
    "calcium": (1.00, 150, 140, 650, 6.0),
}
MRI_TISSUES = {name: row[:3] for name, row in _TISSUES.items()}
CT_TISSUES = {"air": -1000} | {name: row[3] for name, row in _TISSUES.items()}
XRAY_TISSUES = {name: row[4] for name, row in _TISSUES.items()}

# TR, TE, TI (ms; TI None for spin echo), and the signal displayed as white.
MRI_ACQUISITIONS: dict[str, tuple[float, float, float | None, float]] = {
    "T1": (500, 12, None, 0.80),
    "T2": (4000, 100, None, 0.62),
    "PD": (4000, 15, None, 0.92),
    "FLAIR": (9000, 80, 2500, 0.50),
}

# Lower and upper limit of the display window in HU.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "abdominal": (-160, 240),
    "bone": (-200, 800),
    "pulmonary": (-1050, 450),
    "cerebral": (-50, 140),
}

XRAY_CONTRAST = 0.3  # added to the organ with the lesion, for contrast medium
XRAY_PHOTONS = 100_000.0  # photons per pixel without a body
XRAY_WATER = 0.05  # attenuation of water per unit (4 mm), reduced: anti-scatter grid and hard beam
# Line integrals (units of water) displayed as black and as white; the body is longest along its axis.
XRAY_WINDOWS: dict[str, tuple[float, float]] = {
    "frontal": (0.0, 80.0),
    "lateral": (10.0, 115.0),
    "oblique": (5.0, 90.0),
    "axial": (50.0, 150.0),
}

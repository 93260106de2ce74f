"""Tissue constants of MRI, CT and X-ray, and the parameters of their acquisitions.

Values of organs start from the literature; lesions are exaggerated, as after contrast medium, because every
lesion must be visible in every organ and acquisition.
"""

# Proton density (water 1), T1 and T2 in ms at 1.5 T after Stanisz et al. 2005 and Bernstein et al.,
# "Handbook of MRI Pulse Sequences"; parenchyma with the short T1 after gadolinium.
MRI_TISSUES: dict[str, tuple[float, float, float]] = {
    "fat": (0.90, 260, 75),
    "muscle": (0.68, 900, 40),
    "viscera": (0.62, 700, 48),
    "bowel": (0.70, 800, 60),
    "bone": (0.50, 420, 55),
    "rib": (0.12, 500, 40),
    "lung": (0.14, 900, 40),
    "heart": (0.72, 480, 50),
    "liver": (0.70, 560, 45),
    "spleen": (0.74, 620, 75),
    "kidney": (0.76, 420, 66),
    "bladder": (0.75, 4200, 160),
    "cyst": (1.00, 2000, 400),
    "tumor": (1.00, 240, 110),
    "rim": (1.00, 230, 150),
    "pus": (0.10, 2500, 40),
    "blood": (0.98, 220, 160),
    "calcium": (1.00, 150, 140),
}

# TR, TE, TI (ms; TI None for spin echo), and the signal displayed as white.
MRI_ACQUISITIONS: dict[str, tuple[float, float, float | None, float]] = {
    "T1": (500, 12, None, 0.80),
    "T2": (4000, 100, None, 0.62),
    "PD": (4000, 15, None, 0.92),
    "FLAIR": (9000, 80, 2500, 0.50),
}

# Hounsfield units, portal venous phase.
CT_TISSUES: dict[str, float] = {
    "air": -1000,
    "fat": -95,
    "muscle": 50,
    "viscera": 30,
    "bowel": 45,
    "bone": 380,
    "rib": 650,
    "lung": -800,
    "heart": 85,
    "liver": 90,
    "spleen": 95,
    "kidney": 105,
    "bladder": 80,
    "cyst": -15,
    "tumor": 480,
    "rim": 520,
    "pus": -120,
    "blood": 480,
    "calcium": 650,
}

# Lower and upper limit of the display window in HU.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "abdominal": (-160, 240),
    "bone": (-200, 800),
    "pulmonary": (-1050, 450),
    "cerebral": (-50, 140),
}

# Attenuation relative to water at about 60 keV; lesions with the values of contrast medium.
XRAY_TISSUES: dict[str, float] = {
    "fat": 0.9,
    "muscle": 1.0,
    "viscera": 1.0,
    "bowel": 0.96,
    "bone": 1.7,
    "rib": 1.8,
    "lung": 0.3,
    "heart": 1.06,
    "liver": 1.06,
    "spleen": 1.06,
    "kidney": 1.06,
    "bladder": 1.06,
    "cyst": 2.7,
    "tumor": 3.4,
    "rim": 3.8,
    "pus": 0.2,
    "blood": 3.4,
    "calcium": 6.0,
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

"""stub"""
SITES = ("fovea", "disc", "arcade", "periphery")
DISEASES = ("drusen", "exudate", "hemorrhage", "edema", "atrophy")
def draw_retina(spec): ...

"""stub"""
SITES = ("colon", "lung", "kidney", "muscle", "epidermis")
DISEASES = ("inflammation", "necrosis", "fibrosis", "carcinoma", "hemorrhage")
def draw_section(spec): ...

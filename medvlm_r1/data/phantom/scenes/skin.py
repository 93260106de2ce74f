"""stub"""
SITES = ("face", "scalp", "trunk", "sole", "lip")
DISEASES = ("nevus", "melanoma", "keratosis", "hemangioma", "carcinoma")
TONES = ("fair", "olive", "brown", "dark")
def draw_skin(spec): ...

"""The wordings of the questions."""

WORDINGS: dict[str, tuple[str, str, str]] = {
    "Disease Diagnosis": (
        "What is the most likely diagnosis?",
        "Which disease does this image show?",
        "What kind of lesion is seen in this image?",
    ),
    "Lesion Grading": (
        "How severe is the lesion?",
        "Which grade fits the size of the lesion?",
        "How large is the lesion in this image?",
    ),
    # Questions about the site, by scene.
    "torso": (
        "Which organ holds the lesion?",
        "In which organ is the lesion located?",
        "Where is the lesion in this image?",
    ),
    "skin": (
        "Where on the body is the lesion?",
        "Which kind of skin surrounds the lesion?",
        "On which part of the body was this image taken?",
    ),
    "retina": (
        "Which part of the retina holds the lesion?",
        "In which part of the retina is the lesion located?",
        "Where is the lesion in this image?",
    ),
    "section": (
        "Which tissue surrounds the lesion?",
        "Which tissue was this section cut from?",
        "In which tissue is the lesion located?",
    ),
    # Questions about a further attribute.
    "count": (
        "How many lesions are there?",
        "How many lesions does this image show?",
        "What is the number of lesions in this image?",
    ),
    "tone": (
        "What is the skin tone of this patient?",
        "Which skin tone does this image show?",
        "How pigmented is the skin around the lesion?",
    ),
    # Questions about the acquisition, by modality.
    "mri": (
        "Which weighting does this image have?",
        "Which sequence was this image acquired with?",
        "What is the contrast of this image?",
    ),
    "ct": (
        "Which window is this image shown in?",
        "Which display window was chosen for this image?",
        "What is the window of this image?",
    ),
    "xray": (
        "Which view does this image show?",
        "From which direction was this image taken?",
        "What is the projection of this image?",
    ),
    "ultrasound": (
        "Which probe was this image acquired with?",
        "Which transducer took this image?",
        "What is the type of the probe?",
    ),
    "dermoscopy": (
        "Which light was this image taken in?",
        "How was the skin lit for this image?",
        "Which kind of photograph is this?",
    ),
    "fundus": (
        "Which kind of fundus photograph is this?",
        "Which filter was this image taken with?",
        "How was this fundus image acquired?",
    ),
    "oct": (
        "Which kind of tomograph took this image?",
        "How was this section acquired?",
        "Which technique of tomography does this image show?",
    ),
    "microscopy": (
        "Which stain does this section have?",
        "How was this section stained?",
        "What is the staining of this image?",
    ),
}

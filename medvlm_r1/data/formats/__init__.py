"""File formats of questions: tables, the papers' JSON schema, folders of labelled images."""

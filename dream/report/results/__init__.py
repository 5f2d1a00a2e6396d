"""Reading results: files under ``reports/cells``, of the workspace or of a commit, checked to belong together."""

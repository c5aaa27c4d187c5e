"""Encoder folders to the Hugging Face Hub; `load_encoder("org/name")` brings them back."""

from pathlib import Path

from ssmast.encoder.folder import CARD, CHECKSUMS, CONFIG, WEIGHTS, read_folder


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload encoder",
    token: str | None = None,
) -> str:
    """Upload an encoder folder in one commit, after checking it.

    The repository is made if need be. Only what belongs to an encoder goes: configuration, weights,
    card, checksums, ONNX.

    Args:
        folder: encoder folder.
        repo: `org/name`.
        private: nobody else sees it; of a repository that is made now.
        message: of the commit.
        token: of the Hub; by default the one that `hf auth login` keeps.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError, ValueError: if the folder is not a whole encoder.
        ConnectionError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    _, weights = read_folder(folder)
    names = [CONFIG, WEIGHTS, CARD, CHECKSUMS]
    names += sorted(file.name for file in weights.parent.glob("*.onnx"))
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=weights.parent,
            allow_patterns=names,
            commit_message=message,
            repo_type="model",
        )
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"{repo} could not be pushed to the Hub: {reason}") from error
    return str(commit.commit_url)

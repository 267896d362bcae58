"""The inbox: what a person drops is found, judged stable, claimed by rename, or refused with a reason.

Side effects only: no SQL, no settings object, no clock. `Scanner` finds and claims, `Watch` hints when to
look, `reject` and `report_bad_items` write inbox/failed, `claimed_files` is what recovery starts from.
"""

from daemon.inbox.adding import add, publish, sweep_stale_adds
from daemon.inbox.claimed import archive, archive_slice, claimed_files, split_claimed_name
from daemon.inbox.claiming import claim_slice
from daemon.inbox.failed import reject, report_bad_items
from daemon.inbox.folders import FolderFile, FolderTree, folder_contents, folder_files, folder_sha256
from daemon.inbox.names import is_ignored, safe_name
from daemon.inbox.outcomes import Changed, Claim, Duplicate, Entry, Outcome, Refusal
from daemon.inbox.scanner import Scan, Scanner, ensure_folders
from daemon.inbox.watch import Watch

__all__ = [
    "Changed",
    "Claim",
    "Duplicate",
    "Entry",
    "FolderFile",
    "FolderTree",
    "Outcome",
    "Refusal",
    "Scan",
    "Scanner",
    "Watch",
    "add",
    "archive",
    "archive_slice",
    "claim_slice",
    "claimed_files",
    "ensure_folders",
    "folder_contents",
    "folder_files",
    "folder_sha256",
    "is_ignored",
    "publish",
    "reject",
    "report_bad_items",
    "safe_name",
    "split_claimed_name",
    "sweep_stale_adds",
]

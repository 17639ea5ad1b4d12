#!/usr/bin/env bash
# The main job of snapfs, on a real folder: back up, change something, back up again, mount, look at both versions, copy
# one back, compare.  SRC is the folder (default: this project's own).  SRC is only read: the change is made in a copy.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd -P)
leave_out=()
if [[ -z ${SRC:-} ]]; then
    SRC=$project
    leave_out=(--exclude=/.venv --exclude=/.make --exclude=/build '--exclude=/.*_cache' --exclude=/.hypothesis)
fi
if [[ ! -d $SRC ]]; then
    echo "demo: SRC is $SRC, and that is not a folder." >&2
    exit 1
fi

work=$(realpath "$(mktemp -d "${TMPDIR:-/tmp}/snapfs-demo.XXXXXX")")
source=$work/source repository=$work/repository mountpoint=$work/mnt back=$work/back
mounted=no

# Nothing of the demo stays behind: index, state and password live in the temporary folder too.
export XDG_CACHE_HOME=$work/cache XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/config
export SNAPFS_PASSWORD
SNAPFS_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
unset SNAPFS_REPOSITORY SNAPFS_REPOSITORY_FILE SNAPFS_PASSWORD_FILE SNAPFS_PASSWORD_COMMAND SNAPFS_PASSWORD_FD

clean_up() {
    if [[ $mounted == yes ]]; then
        fusermount3 -u -z "$mountpoint" || true
    fi
    chmod -R u+rwX "$work/source" "$work/back" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
run() {
    printf '   $ %s\n' "$*"
    "$@"
}
fail() {
    echo "demo: $*" >&2
    exit 1
}

say "A copy of $SRC to play with: $source"
status=0
rsync -aHAX --no-devices --no-specials "${leave_out[@]}" "$SRC/" "$source/" >/dev/null || status=$?
case $status in
0) ;;
23 | 24) echo "   (what could not be read, or vanished, is not in the copy)" ;;
*) fail "copying $SRC failed (rsync's exit code $status)" ;;
esac
echo "   $(find "$source" | wc -l) names, $(du -sh --apparent-size "$source" | cut -f1)"

say "A repository: a folder of encrypted files"
run snapfs init -r "$repository"

say "The first backup"
run snapfs backup -r "$repository" "$source"

say "Something changes: a line more in one file, and a new file"
changed=README.md
if [[ ! -f $source/$changed || -L $source/$changed ]]; then # then any small file will do
    IFS= read -r -d '' changed < <(cd "$source" && find . -name .git -prune -o -type f -size -1000k -print0) || true
fi
if [[ -n $changed ]]; then
    changed=${changed#./}
    cp -p "$source/$changed" "$work/before"
    chmod u+w "$source/$changed"
    echo "This line was written between the two backups." >>"$source/$changed"
    echo "   changed: $changed"
fi
chmod u+w "$source"
echo "This file is new." >"$source/new-in-the-demo.txt"
echo "   new: new-in-the-demo.txt"

say "The second backup stores only what changed"
run snapfs backup -r "$repository" "$source"

say "Every snapshot as ordinary folders"
mkdir "$mountpoint"
run snapfs mount -r "$repository" "$mountpoint" || fail "the backups are made, but mounting is not possible here (see above)"
mounted=yes
run ls "$mountpoint/snapshots"
mapfile -t times < <(cd "$mountpoint/snapshots" && for name in *; do [[ $name == latest ]] || echo "$name"; done)
((${#times[@]} == 2)) || fail "expected two snapshots, found ${#times[@]}"
old=$mountpoint/snapshots/${times[0]}$source
new=$mountpoint/snapshots/latest$source

say "Both versions, side by side"
status=0
run diff -rq --no-dereference "$old" "$new" || status=$?
((status == 1)) || fail "the two snapshots should differ, and be readable (diff's exit code $status)"
if [[ -n $changed ]]; then
    cmp "$work/before" "$old/$changed" || fail "the old version of $changed is not what it was before the change"
    echo "   The older snapshot still has $changed as it was before the change."
fi

say "Copying a version back, and comparing it with the folder"
run cp -a "$new" "$back"
run diff -r --no-dereference "$source" "$back" || fail "the copy differs from the source"
echo "   diff says nothing: they are equal."

say "Unmounting"
run snapfs umount "$mountpoint"
mounted=no

cat <<END

Done.  snapfs backed up a copy of $SRC twice, with a change in between, into an encrypted repository of
$(du -sh --apparent-size "$repository" | cut -f1).  Mounted, both versions were there as ordinary read-only folders; one was copied back with
cp, and diff -r found it equal to the source.  All of it was in a temporary folder, which is now removed.
END

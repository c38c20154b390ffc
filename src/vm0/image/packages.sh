# Run by mmdebstrap outside of the tree "$1" when its packages are installed: keeps what was fetched in "$2" and adds the
# newest kernel that the metapackage "$3" names, and busybox, which are unpacked elsewhere.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cp "$1"/var/cache/apt/archives/*.deb "$2"/
cp "$1"/etc/apt/sources.list "$2"/
cd "$2"
kernel=$(apt-cache show --no-all-versions "$3" | sed -n 's/^Depends: \([^ ,]*\).*/\1/p')
test -n "$kernel" || { echo "$3 depends on no kernel" >&2; exit 1; }
apt-get download "$3" "$kernel" busybox-static
echo "$kernel" >kernel

# Makes the file tree of a machine, enters it, and holds its namespaces until
# the standard input ends. Run by bash as the first process of new mount and
# process namespaces; says "ready" when all is mounted. It runs as few programs
# as it can, for each takes a millisecond.
#
# $1: an empty directory   $2: size of the tree in bytes, or nothing
# $3: user ID of "user", 0 in a user namespace   then pairs: a path of the host, and one of the tree
set -eu
umask 022
root=$1 size=$2 uid=$3
shift 3

mount -t tmpfs -o "mode=755${size:+,size=$size}" machine "$root"
cd "$root"

# REPLY is $1 as a field of fstab, which has no spaces.
field() {
	REPLY=${1//\\/\\134}
	REPLY=${REPLY// /\\040}
	REPLY=${REPLY//$'\t'/\\011}
}
field "$root"
here=$REPLY

# The system, and what else was asked for.
links=() files=() fstab=
dirs=(.old dev/pts dev/shm home/user opt proc root run tmp var/tmp)
for dir in /usr /bin /sbin /lib /lib32 /lib64 /libx32 /etc; do
	if [[ -L $dir ]]; then
		links+=("$dir")
	elif [[ -d $dir ]]; then
		dirs+=(".$dir")
		fstab+="$dir $here$dir none rbind 0 0"$'\n'
	fi
done
# /opt is the tree's own, with what the host has there.
own=()
for name in /opt/*; do
	if [[ -L $name ]]; then
		own+=("$name")
	elif [[ -e $name ]]; then
		set -- "$@" "$name" "$name"
	fi
done
while [[ $# -gt 1 ]]; do
	if [[ -d $1 ]]; then
		dirs+=(".$2")
	else
		dirs+=(".${2%/*}")
		files+=(".$2")
	fi
	field "$1"
	fstab+="$REPLY "
	field "$2"
	fstab+="$here$REPLY none rbind 0 0"$'\n'
	shift 2
done
mkdir -p "${dirs[@]}"
[[ ${#links[@]} == 0 ]] || cp -P "${links[@]}" .
[[ ${#own[@]} == 0 ]] || cp -P "${own[@]}" opt
for file in ${files[@]+"${files[@]}"}; do
	: >"$file"
done
printf %s "$fstab" >.fstab
mount -a -T .fstab

# All of it, with what is mounted below, is only for reading. Flags that are
# there must stay: without privileges on the host they cannot be taken away.
mapfile -t mounts </proc/self/mountinfo
for line in "${mounts[@]}"; do
	read -r _ _ _ _ point flags _ <<<"$line"
	printf -v point %b "$point"
	if [[ $point == "$root"/* && $flags == rw* ]]; then
		mount -o "remount,bind,ro${flags#rw}" "$point"
	fi
done

# Processes, devices, users.
nodes=(null zero full random urandom tty)
for node in "${nodes[@]}"; do
	: >"dev/$node"
done
printf '%s\n' 'root:x:0:0:root:/root:/bin/bash' "user:x:$uid:$uid::/home/user:/bin/bash" \
	'nobody:x:65534:65534:nobody:/nonexistent:/bin/false' >.passwd
printf '%s\n' 'root:x:0:' "user:x:$uid:" 'tty:x:5:' 'nogroup:x:65534:' >.group
{
	echo "proc $here/proc proc nosuid,nodev,noexec 0 0"
	echo "devpts $here/dev/pts devpts newinstance,ptmxmode=0666,mode=620,nosuid,noexec 0 0"
	echo "shm $here/dev/shm tmpfs mode=1777,nosuid,nodev 0 0"
	for node in "${nodes[@]}"; do
		echo "/dev/$node $here/dev/$node none bind 0 0"
	done
	for file in passwd group; do
		[[ ! -f etc/$file ]] || echo "$here/.$file $here/etc/$file none bind,ro 0 0"
	done
	# What not everybody may read on the host.
	while read -r -d '' name; do
		field "/$name"
		if [[ -d $name ]]; then
			echo "none $here$REPLY tmpfs ro,size=4k,mode=755 0 0"
		else
			echo "/dev/null $here$REPLY none bind 0 0"
		fi
	done < <(find etc/ \( -path etc/ssh -o -type d ! -perm -5 \) -prune -print0 -o -type f ! -perm -4 -print0 2>/dev/null)
	# Where root could change the host, and what the kernel has in memory.
	for name in sys sysrq-trigger irq bus; do
		[[ ! -e /proc/$name ]] || echo "/proc/$name $here/proc/$name none bind,ro 0 0"
	done
	for name in kallsyms kcore keys kmsg timer_list; do
		[[ ! -e /proc/$name ]] || echo "/dev/null $here/proc/$name none bind 0 0"
	done
} >.fstab
mount -a -T .fstab

pivot_root . .old
cd /
umount -l /.old
# Orphans that end are not waited for. Only bash passes that on to cat.
hold='trap "" CHLD; echo ready; exec cat >/dev/null 2>&1'
if [[ $uid == 0 ]]; then
	# In a user namespace the owner of a mount can make it writable again. Those
	# that a user namespace within inherits are locked.
	exec unshare --user --map-root-user --mount bash -c "$hold"
fi
eval "$hold"

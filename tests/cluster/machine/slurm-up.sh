#!/usr/bin/env bash
# Bring up a private single-node Slurm for tests: Debian, root, no systemd, no GPU. A second call finds it up.
#
#   bash slurm-up.sh [STATE]      STATE: a folder that holds everything of this Slurm (default: a new temporary one)
#   export SLURM_CONF=STATE/etc/slurm.conf
#   bash slurm-down.sh STATE
#
# Own munge key and socket, own ports, own job numbers: it meets no other Slurm of the machine. Constraints are real:
# processes are tracked and memory and devices are limited by control groups (version 1). Eight character devices
# play the GPUs. The node claims 16 CPUs and 256 GB whatever the machine has, so that nobody's #SBATCH line is too large.
# What is slow in a cluster for good reasons is quick here: jobs start within a second or two, also after a requeue.
#
#   HEATLENS_SLURM_KILL_WAIT   seconds from SIGTERM to SIGKILL (default 20; a run's STOP_GRACE must be below)

set -euo pipefail

umask 022 # the jobs' folders must be readable by the users that run them
here=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
kill_wait=${HEATLENS_SLURM_KILL_WAIT:-20}
gpus=8

fail() {
    printf 'slurm-up: %s\n' "$@" >&2
    exit 4
}

check_machine() {
    ((EUID == 0)) || fail 'needs root: slurmd starts jobs for other users.'
    [[ -f /etc/debian_version ]] || fail 'is written for Debian (its package names and Slurm 22.05 or newer).'
}

install_packages() {
    local package
    local missing=()
    for package in slurmctld slurmd slurm-client munge cgroupfs-mount; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    apt-get -o DPkg::Lock::Timeout=300 update -qq >"$state/log/apt.log" 2>&1 || true # what is cached may do
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
        --no-install-recommends "${missing[@]}" >>"$state/log/apt.log" 2>&1 || {
        tail -n 20 "$state/log/apt.log" >&2
        fail "apt-get could not install ${missing[*]}."
    }
}

# Slurm's plugin for version 2 hands its work to systemd, which is not there.
mount_cgroups() {
    if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then
        fail 'this machine has control groups of version 2 only; the test needs version 1' \
            '(kernel parameter systemd.unified_cgroup_hierarchy=0), because version 2 of Slurm needs systemd.'
    fi
    local controller
    for controller in freezer devices memory cpuset; do
        mountpoint -q "/sys/fs/cgroup/$controller" && continue
        [[ -f $state/cgroups-mounted ]] || {
            cgroupfs-mount
            : >"$state/cgroups-mounted" # slurm-down.sh takes them away again
        }
        mountpoint -q "/sys/fs/cgroup/$controller" || fail "the kernel offers no control group '$controller'."
    done
}

# free_port FIRST: the first port from FIRST on that nobody listens at.
free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        ((port += 1))
    done
    printf '%s\n' "$port"
}

make_devices() {
    local i
    for ((i = 0; i < gpus; i++)); do
        [[ -c $state/dev/gpu$i ]] || mknod -m 666 "$state/dev/gpu$i" c 195 "$i"
    done
}

write_configuration() {
    local controller_port node_port first_job
    controller_port=$(free_port $((20000 + RANDOM % 5000)))
    node_port=$(free_port $((25000 + RANDOM % 5000)))
    first_job=$((100000 + RANDOM * 20)) # names containers and control groups that another Slurm here must not share
    printf 'NodeName=%s Name=gpu Type=fake File=%s\n' "$host" "$state/dev/gpu[0-$((gpus - 1))]" >"$state/etc/gres.conf"
    cat >"$state/etc/cgroup.conf" <<END
CgroupAutomount=no
CgroupMountpoint=/sys/fs/cgroup
CgroupPlugin=cgroup/v1
ConstrainDevices=yes
ConstrainRAMSpace=yes
END
    cat >"$SLURM_CONF.new" <<END
ClusterName=heatlens
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 120 seconds by default.
AuthInfo=socket=$state/munge/munge.socket,cred_expire=5
FirstJobId=$first_job
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/spool
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info
KillWait=$kill_wait
UnkillableStepTimeout=120
InactiveLimit=0
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=262144 Gres=gpu:fake:$gpus State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=7-00:00:00 DefaultTime=00:10:00 State=UP OverSubscribe=NO
END
    mv -- "$SLURM_CONF.new" "$SLURM_CONF"
}

# alive FILE: the process whose number is in FILE is there.
alive() {
    [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null
}

start_daemons() {
    local munge=$state/munge
    if ! alive "$munge/munged.pid"; then
        rm -f -- "$munge/munge.socket" "$munge/munge.socket.lock"
        [[ -s $munge/munge.key ]] ||
            (umask 077 && dd if=/dev/urandom of="$munge/munge.key" bs=128 count=1 iflag=fullblock status=none)
        munged --force --key-file="$munge/munge.key" --socket="$munge/munge.socket" --pid-file="$munge/munged.pid" \
            --log-file="$munge/munged.log" --seed-file="$munge/munged.seed" 2>"$state/log/munged.err" ||
            fail "munged did not start: $(<"$state/log/munged.err")"
    fi
    alive "$state/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
    alive "$state/slurmd.pid" || slurmd -f "$SLURM_CONF" -N "$host"
}

wait_for_idle() {
    local node='' deadline=$((SECONDS + 60))
    while ((SECONDS < deadline)); do
        node=$(sinfo -h -N -o %T 2>/dev/null | head -n 1 || true)
        case $node in
            idle | mixed | allocated | completing) return 0 ;;
            down* | drain*) scontrol update "nodename=$host" state=resume 2>/dev/null || true ;;
        esac
        sleep 0.2
    done
    tail -n 20 "$state"/log/*.log >&2 || true
    bash "$here/slurm-down.sh" "$state" >&2 || true
    fail "the node is '${node:-not answering}' after a minute. Logs: $state/log"
}

check_machine
state=${1:-$(mktemp -d "${TMPDIR:-/tmp}/heatlens-slurm.XXXXXX")}
mkdir -p -- "$state"/{etc,dev,log,controller,spool,munge}
state=$(cd -P -- "$state" && pwd)
[[ $state =~ ^[a-zA-Z0-9_./-]+$ ]] || fail "STATE stands in Slurm's own files, so no blanks or quotes in it: $state"
chmod 755 -- "$state" "$state/munge"
host=$(hostname -s)
export SLURM_CONF=$state/etc/slurm.conf
install_packages
mount_cgroups
make_devices
[[ -s $SLURM_CONF ]] || write_configuration
start_daemons
wait_for_idle
printf 'slurm-up: node %s is ready; export SLURM_CONF=%s\n' "$host" "$SLURM_CONF"

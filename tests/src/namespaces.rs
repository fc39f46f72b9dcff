//! A network of the test's own: each process of a cluster in a network namespace, all of them on one
//! bridge, and nft to drop what one sends another. Needs root.
//!
//! The product's addresses are loopback's. In each namespace nft sends what goes to a replica server's
//! port to that server's namespace, and there back to loopback; so the processes need not know.
//! The manager's own socket is a unix socket, which no network parts: pausing or killing the manager is
//! how the record store goes away.

use crate::command::{is_installed, must};
use crate::{Scratch, Setup, cluster, launcher};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Who has a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// The manager, which keeps the records, and commands.
    Manager,
    /// The volume's engine.
    Engine,
    /// The server of `replica-N`.
    Replica(u32),
}

impl Node {
    const fn number(self) -> u32 {
        match self {
            Self::Manager => 1,
            Self::Engine => 2,
            Self::Replica(number) => 10 + number,
        }
    }

    fn address(self) -> String {
        format!("10.77.0.{}", self.number())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Engine => f.write_str("engine"),
            Self::Replica(number) => write!(f, "replica-{number}"),
        }
    }
}

/// Why namespaces cannot be made on this machine; `None` when they can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if must("id", &["-u"]).stdout.trim() != "0" {
        return Some("network namespaces need root".to_owned());
    }
    let missing = ["ip", "nft", "nsenter"].into_iter().find(|program| !is_installed(program));
    if let Some(program) = missing {
        return Some(format!("{program} is not installed (make deps)"));
    }
    let probe = next_prefix();
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    let made = made.is_ok_and(|output| output.status.success());
    quietly(&["netns", "del", &probe]);
    (!made).then(|| "the kernel makes no network namespaces here".to_owned())
}

/// What nobody else's namespaces begin with: tests run beside each other.
fn next_prefix() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("trivet-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// The network. Dropping it removes the namespaces, and with them all that is in them.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    nodes: Vec<Node>,
    scratch: Scratch,
}

impl Network {
    /// A network for a cluster of so many replica servers.
    ///
    /// # Panics
    /// When it cannot be made; see [`obstacle`].
    #[must_use]
    pub fn new(replicas: u32) -> Self {
        let prefix = next_prefix();
        let mut nodes = vec![Node::Manager, Node::Engine];
        nodes.extend((1..=replicas).map(Node::Replica));
        let network = Self { prefix, nodes, scratch: Scratch::new() };
        let switch = format!("{}-switch", network.prefix);
        must("ip", &["netns", "add", &switch]);
        must("ip", &["-n", &switch, "link", "add", "bridge", "type", "bridge"]);
        must("ip", &["-n", &switch, "link", "set", "bridge", "up"]);
        for node in &network.nodes {
            network.plug_in(*node, &switch);
        }
        launcher::write(&network.launcher(), &network.script());
        network
    }

    fn plug_in(&self, node: Node, switch: &str) {
        let (name, port) = (self.name(node), node.to_string());
        must("ip", &["netns", "add", &name]);
        let ends = ["type", "veth", "peer", "name", "lan", "netns", &name];
        must("ip", &[&["-n", switch, "link", "add", "name", &port][..], &ends].concat());
        must("ip", &["-n", switch, "link", "set", &port, "master", "bridge", "up"]);
        must("ip", &["-n", &name, "address", "add", &format!("{}/24", node.address()), "dev", "lan"]);
        must("ip", &["-n", &name, "link", "set", "lan", "up"]);
        must("ip", &["-n", &name, "link", "set", "lo", "up"]);
        // What comes from outside may go to loopback, and the other way round.
        self.within(node, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/lan/route_localnet"]);
        self.within(node, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/lo/route_localnet"]);
        let rules = self.scratch.join(&format!("{node}.nft"));
        std::fs::write(&rules, RULES).unwrap_or_else(|e| panic!("{}: {e}", rules.display()));
        self.within(node, &["nft", "-f", &rules.to_string_lossy()]);
    }

    fn name(&self, node: Node) -> String {
        format!("{}-{node}", self.prefix)
    }

    /// The file by which a node's namespace is entered.
    fn namespace(&self, node: Node) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(node))
    }

    /// A cluster in this network, with as many replica servers.
    #[must_use]
    pub fn setup(&self, size: &str) -> Setup {
        let replicas = self.nodes.iter().filter(|node| matches!(node, Node::Replica(_))).count();
        Setup {
            launcher: Some(self.launcher()),
            namespace: Some(self.namespace(Node::Manager)),
            ..Setup::new(u32::try_from(replicas).expect("few"), size)
        }
    }

    fn launcher(&self) -> PathBuf {
        self.scratch.join("launcher")
    }

    fn within(&self, node: Node, command: &[&str]) {
        let enter = format!("--net={}", self.namespace(node).display());
        must("nsenter", &[&[enter.as_str()], command].concat());
    }

    /// Each process enters the namespace of its name; what leads to a server is told to everyone.
    fn script(&self) -> String {
        let names: Vec<String> = self.nodes.iter().map(|node| self.name(*node)).collect();
        let addresses = self.nodes.iter().filter(|node| matches!(node, Node::Replica(_)));
        let addresses: Vec<String> =
            addresses.map(|node| format!("    {node}) address={} ;;", node.address())).collect();
        SCRIPT
            .replace("PREFIX", &self.prefix)
            .replace("NAMES", &names.join(" "))
            .replace("ADDRESSES", &addresses.join("\n"))
            .replace("TRIVET", &cluster::binary().to_string_lossy())
    }

    /// From now on nothing that `from` sends reaches `to`.
    ///
    /// # Panics
    /// When nft fails.
    pub fn block(&self, from: Node, to: Node) {
        let element = format!("{{ {} }}", from.address());
        self.within(to, &["nft", "add", "element", "ip", "trivet", "cut", &element]);
    }

    /// From now on these two hear nothing of each other.
    ///
    /// # Panics
    /// When nft fails.
    pub fn part(&self, one: Node, other: Node) {
        self.block(one, other);
        self.block(other, one);
    }

    /// From now on nobody hears this one, nor is heard by it.
    ///
    /// # Panics
    /// When nft fails.
    pub fn cut_off(&self, node: Node) {
        for other in self.nodes.iter().filter(|other| **other != node) {
            self.part(node, *other);
        }
    }

    /// Everything passes again.
    ///
    /// # Panics
    /// When nft fails.
    pub fn heal(&self) {
        for node in &self.nodes {
            self.within(*node, &["nft", "flush", "set", "ip", "trivet", "cut"]);
        }
    }
}

const RULES: &str = "table ip trivet {
    map servers { type inet_service : ipv4_addr; }
    set cut { type ipv4_addr; }
    chain arrive { type filter hook prerouting priority raw; ip saddr @cut drop; }
    chain leave {
        type nat hook output priority -100;
        ip daddr 127.0.0.1 dnat to tcp dport map @servers
    }
    chain sign { type nat hook postrouting priority srcnat; oifname lan ip saddr 127.0.0.1 masquerade; }
    chain enter {
        type nat hook prerouting priority dstnat;
        iifname lan tcp dport 1024-65535 dnat to 127.0.0.1
    }
}
";

const SCRIPT: &str = r#"case "$name" in
    engine-*) name=engine ;;
ADDRESSES
esac
if [ -n "$address" ]; then
    for node in NAMES; do
        nsenter --net="/run/netns/$node" nft add element ip trivet servers "{ ${listen##*:} : $address }"
    done
fi
exec nsenter --net="/run/netns/PREFIX-$name" "TRIVET" "$@"
"#;

impl Drop for Network {
    fn drop(&mut self) {
        for node in &self.nodes {
            quietly(&["netns", "del", &self.name(*node)]);
        }
        quietly(&["netns", "del", &format!("{}-switch", self.prefix)]);
    }
}

/// For cleaning up, where a failure is no news: it may be gone already.
fn quietly(arguments: &[&str]) {
    drop(Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status());
}

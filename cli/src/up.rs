//! `trivet up`.

use crate::args::{Place, VolumeSize, byte_size};
use crate::cluster::{client, command, manager_address};
use crate::down;
use crate::explain;
use crate::failure::{Exit, Failure};
use crate::output::say;
use crate::progress::Step;
use crate::snapshot_view::ExportView;
use crate::view::{self, ClusterView, VolumeView};
use clap::Args;
use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use trivet_api::{ApiError, Client, Layout, ManagerAddress, v1};
use trivet_manager::server::MANAGER_NAME;
use trivet_manager::supervisor::{last_error_in_log, open_log, run_lock};
use trivet_model::BLOCK_SIZE_U64;
use trivet_model::size::ByteSize;

/// The volume that a cluster without volumes is given.
const FIRST_VOLUME: &str = "disk0";
const FIRST_VOLUME_BLOCKS: u64 = (10 << 30) / BLOCK_SIZE_U64;

/// Time for the manager to answer.
const MANAGER_PATIENCE: Duration = Duration::from_secs(30);
/// Time for replica servers and engines to be ready; recovery after a crash is bounded by the
/// journal's length.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// A process that has died this often without ever being ready will not come up by waiting.
const DEATHS_HOPELESS: u32 = 3;
/// It is looked again after an eighth of the time that was waited, within these.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Start a local cluster with a volume served as a disk
#[derive(Args, Debug)]
#[command(after_help = "\
Safe to run again at any time: it starts what does not run, and changes nothing else.
The processes go on when this command has ended; `trivet down` stops them.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    place: Place,
    /// Replica servers of a new cluster [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    replicas: Option<u32>,
    /// Size of the volume disk0 of a new cluster [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    size: Option<VolumeSize>,
    /// Space that each pool of a new cluster may take on its disk [default: the disk's]
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    capacity: Option<u64>,
    /// Seconds until the copy on a replica server that does not answer is replaced by one on another; it
    /// is remembered [default: as before; in a new cluster 600]
    #[arg(long, value_name = "SECONDS")]
    replace_after: Option<u64>,
    /// Stay, and stop the cluster on Ctrl-C or SIGTERM
    #[arg(long)]
    foreground: bool,
}

pub(crate) async fn run(arguments: &UpArgs) -> Result<(), Failure> {
    let dir = arguments.place.dir()?;
    let layout = Layout::create(&dir).map_err(|error| explain::layout(&error))?;
    let mut step = Step::begin("starting the manager");
    let client = start_manager(&layout).await?;
    let replicas = v1::EnsureReplicasRequest {
        count: arguments.replicas.unwrap_or(0),
        capacity_bytes: arguments.capacity.unwrap_or(0),
    };
    let failed = |what: &'static str| {
        let dir = layout.dir().to_owned();
        move |error: ApiError| explain::api(&dir, what, &error)
    };
    if arguments.replace_after.is_some() {
        let request = v1::SetClusterRequest { replace_after_seconds: arguments.replace_after };
        client.set_cluster(request).await.map_err(failed("cannot set when copies are replaced"))?;
    }
    client.ensure_replicas(replicas).await.map_err(failed("cannot make the replica servers"))?;
    wait_for(&client, &layout, &mut step, replicas_missing).await?;
    let cluster = status(&client, &layout).await?;
    if cluster.volumes.is_empty() {
        let blocks = arguments.size.map_or(FIRST_VOLUME_BLOCKS, |size| size.blocks);
        let create = v1::CreateVolumeRequest { name: FIRST_VOLUME.to_owned(), blocks, ..Default::default() };
        client.create_volume(create).await.map_err(failed("cannot make the volume disk0"))?;
        let attach = v1::AttachVolumeRequest { name: FIRST_VOLUME.to_owned(), ..Default::default() };
        client.attach_volume(attach).await.map_err(failed("cannot attach the volume disk0"))?;
    }
    let cluster = wait_for(&client, &layout, &mut step, engines_missing).await?;
    drop(step);
    report(&cluster, arguments, layout.dir());
    if arguments.foreground {
        stay(&layout).await?;
    }
    Ok(())
}

async fn status(client: &Client, layout: &Layout) -> Result<ClusterView, Failure> {
    let answer = client.get_status(v1::GetStatusRequest {}).await;
    view::cluster(
        answer.map_err(|error| explain::api(layout.dir(), "cannot learn the cluster's state", &error))?,
    )
}

/// A client of the cluster's manager, which is started if it does not run.
async fn start_manager(layout: &Layout) -> Result<Client, Failure> {
    let client = client(layout)?;
    let holder = |error| explain::system("cannot look for the manager", &layout.run(), &error);
    let mut child = match run_lock::holder(&layout.lock(MANAGER_NAME)).map_err(holder)? {
        Some(_) => None,
        None => Some(spawn_manager(layout)?),
    };
    let deadline = Instant::now() + MANAGER_PATIENCE;
    loop {
        let error = match client.get_status(v1::GetStatusRequest {}).await {
            Ok(_) => return Ok(client),
            Err(error) => error,
        };
        if let Some(child) = &mut child {
            fail_if_ended(child, layout)?;
        }
        if Instant::now() >= deadline {
            return Err(explain::api(layout.dir(), "the manager does not answer", &error));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn spawn_manager(layout: &Layout) -> Result<Child, Failure> {
    use std::os::unix::process::CommandExt;
    let path = layout.log(MANAGER_NAME);
    let failed = |error| explain::system("cannot start the manager", &path, &error);
    let log = open_log(&path).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut manager = Command::new(program);
    manager.arg("manager").arg("--dir").arg(layout.dir());
    if let ManagerAddress::Socket(socket) = manager_address(layout)?
        && !socket.starts_with(layout.dir())
    {
        eprintln!(
            "note: the folder's path is too long for unix sockets; they are in {}",
            socket.parent().unwrap_or(&socket).display()
        );
    }
    let errors = log.try_clone().map_err(failed)?;
    manager.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    // Ctrl-C here is not for it.
    manager.process_group(0).spawn().map_err(failed)
}

fn fail_if_ended(child: &mut Child, layout: &Layout) -> Result<(), Failure> {
    match child.try_wait() {
        Ok(None) => Ok(()),
        // Another `trivet up` was faster: its manager is as good.
        Ok(Some(status)) if status.code() == Some(Exit::Conflict as i32) => Ok(()),
        Ok(Some(status)) => {
            let log = layout.log(MANAGER_NAME);
            let said = last_error_in_log(&log).unwrap_or_else(|| status.to_string());
            Err(Failure::new("the manager does not start", said, format!("read its log: {}", log.display())))
        }
        Err(error) => Err(explain::system("cannot watch the manager", &layout.run(), &error)),
    }
}

/// Waits until `missing` has nothing to wait for; gives up on what keeps dying.
async fn wait_for(
    client: &Client,
    layout: &Layout,
    step: &mut Step,
    missing: impl Fn(&ClusterView) -> Vec<Missing>,
) -> Result<ClusterView, Failure> {
    let began = Instant::now();
    let deadline = began + READY_PATIENCE;
    let shown_from = began + Duration::from_secs(2);
    // Deaths from before are history: only those that happen while one waits say that it is hopeless.
    let mut deaths_before: HashMap<String, u32> = HashMap::new();
    loop {
        let cluster = status(client, layout).await?;
        let missing = missing(&cluster);
        let Some(first) = missing.first() else { return Ok(cluster) };
        let hopeless = missing.iter().find(|missing| {
            let before = *deaths_before.entry(missing.name.clone()).or_insert(missing.deaths);
            missing.deaths.saturating_sub(before) >= DEATHS_HOPELESS
        });
        if let Some(hopeless) = hopeless {
            let failure = explain::process(format!("{} does not start", hopeless.name), &hopeless.reason);
            return Err(failure.with_log(&hopeless.log));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                format!("{} is not ready after {} s", first.name, READY_PATIENCE.as_secs()),
                &first.reason,
                format!("read its log: {}", first.log),
            ));
        }
        if step.is_shown() || Instant::now() >= shown_from {
            let names: Vec<&str> = missing.iter().map(|missing| missing.name.as_str()).collect();
            step.tell(format!("waiting for {}", names.join(", ")));
        }
        tokio::time::sleep((began.elapsed() / 8).clamp(LOOK_AGAIN_MIN, LOOK_AGAIN)).await;
    }
}

/// A process that is waited for.
struct Missing {
    name: String,
    reason: String,
    deaths: u32,
    log: String,
}

fn replicas_missing(cluster: &ClusterView) -> Vec<Missing> {
    let missing = cluster.replicas.iter().filter(|replica| replica.size_bytes.is_none());
    missing
        .map(|replica| Missing {
            name: replica.name.clone(),
            reason: replica.trouble.clone(),
            deaths: replica.process.restarts,
            log: replica.process.log.clone(),
        })
        .collect()
}

fn engines_missing(cluster: &ClusterView) -> Vec<Missing> {
    cluster.volumes.iter().filter(|volume| volume.attached).filter_map(engine_missing).collect()
}

fn engine_missing(volume: &VolumeView) -> Option<Missing> {
    // One that is locked waits for a person.
    let engine = volume.engine.as_ref().filter(|_| !volume.serving && !volume.is_locked())?;
    Some(Missing {
        name: format!("engine-{}", volume.name),
        reason: volume.trouble.clone(),
        deaths: engine.restarts,
        log: engine.log.clone(),
    })
}

/// Waits until the engine of an attached volume serves it.
pub(crate) async fn wait_for_engine(
    client: &Client,
    layout: &Layout,
    name: &str,
) -> Result<VolumeView, Failure> {
    let mut step = Step::begin(&format!("waiting for engine-{name}"));
    let of_volume = |cluster: &ClusterView| -> Vec<Missing> {
        cluster.volumes.iter().filter(|volume| volume.name == name).filter_map(engine_missing).collect()
    };
    let cluster = wait_for(client, layout, &mut step, of_volume).await?;
    let gone = || Failure::new(format!("volume '{name}' is gone"), "someone deleted it meanwhile", "");
    cluster.volumes.into_iter().find(|volume| volume.name == name).ok_or_else(gone)
}

/// Waits until an exported snapshot is served.
pub(crate) async fn wait_for_export(
    client: &Client,
    layout: &Layout,
    volume: &str,
    snapshot: &str,
) -> Result<ExportView, Failure> {
    let found = |cluster: &ClusterView| {
        let volumes = cluster.volumes.iter().filter(|found| found.name == volume);
        let snapshot = volumes.flat_map(|found| &found.snapshots).find(|found| found.name == snapshot);
        snapshot.and_then(|snapshot| snapshot.export.clone())
    };
    let missing = |cluster: &ClusterView| {
        let export = found(cluster).filter(|export| !export.serving);
        let missing = export.map(|export| Missing {
            name: format!("the export of {volume}@{snapshot}"),
            reason: export.trouble,
            deaths: export.engine.restarts,
            log: export.engine.log,
        });
        missing.into_iter().collect()
    };
    let mut step = Step::begin(&format!("waiting for {volume}@{snapshot}"));
    let cluster = wait_for(client, layout, &mut step, missing).await?;
    found(&cluster).ok_or_else(|| {
        let cause = "somebody has ended it, or deleted the snapshot, meanwhile";
        Failure::new(format!("{volume}@{snapshot} is exported no more"), cause, "").exit(Exit::NotFound)
    })
}

fn report(cluster: &ClusterView, arguments: &UpArgs, dir: &Path) {
    say(&format!("cluster in {} is up: {} replica servers", cluster.dir, cluster.replicas.len()));
    for volume in &cluster.volumes {
        let uri = volume.uri.as_deref().unwrap_or("detached");
        say(&format!("{}  {}  {uri}", volume.name, ByteSize(volume.size_bytes)));
    }
    let first = cluster.volumes.iter().find(|volume| volume.name == FIRST_VOLUME);
    if let (Some(asked), Some(volume)) = (arguments.size, first)
        && asked.blocks * BLOCK_SIZE_U64 != volume.size_bytes
    {
        let hint = command(dir, "volume resize disk0 --size SIZE");
        say(&format!("note: disk0 keeps its size of {}; {hint} grows it", ByteSize(volume.size_bytes)));
    }
    let served = first.or_else(|| cluster.volumes.first());
    let Some((volume, uri)) = served.and_then(|volume| Some((volume, volume.uri.as_ref()?))) else {
        if let Some(volume) = served {
            let attach = command(dir, &format!("volume attach {}", volume.name));
            say(&format!("note: {} is detached; {attach} serves it", volume.name));
        }
        return;
    };
    say(&format!(
        "\nTry:\n  nbdinfo '{uri}'\n  {}\n  {}",
        command(dir, &format!("bench --uri '{uri}' --rw randread --bs 4k")),
        command(dir, &format!("volume show {}", volume.name)),
    ));
}

async fn stay(layout: &Layout) -> Result<(), Failure> {
    eprintln!("running in the foreground; Ctrl-C stops the cluster");
    let failed = |error| explain::system("cannot wait for signals", layout.dir(), &error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    let stopped = down::stop(layout).await?;
    say(&format!("stopped {}; the data stays in {}", down::processes(stopped), layout.dir().display()));
    Ok(())
}

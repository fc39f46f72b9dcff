//! The supervisor with real processes: `sleep`, holding its lock through `flock`.

#![allow(clippy::unwrap_used, reason = "tests may")]
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trivet_manager::supervisor::{Phase, ProcessSpec, Supervisor, run_lock, stop_holders};

const SOON: Duration = Duration::from_secs(20);

/// A shell that takes the lock the way a role does (pid first), and becomes `sleep`.
fn sleeper(dir: &Path, name: &str) -> ProcessSpec {
    let lock = dir.join(format!("{name}.lock"));
    let script =
        format!("exec 9<>{0}; flock -x -w 5 9 || exit 4; echo $$ > {0}; exec sleep 600", lock.display());
    ProcessSpec {
        name: name.to_owned(),
        program: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".to_owned(), script],
        lock,
        log: dir.join(format!("{name}.log")),
    }
}

async fn runs(supervisor: &Supervisor, spec: &ProcessSpec) -> u32 {
    let up = supervisor
        .wait_until(SOON, |states| states.get(&spec.name).is_some_and(|state| state.phase == Phase::Running))
        .await;
    assert!(up, "{:?}", supervisor.states());
    loop {
        if let Ok(Some(holder)) = run_lock::holder(&spec.lock) {
            return holder.pid();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_killed_come_back_and_the_unwanted_stop() {
    let temp = tempfile::tempdir().unwrap();
    let spec = sleeper(temp.path(), "a");
    let supervisor = Supervisor::spawn();
    supervisor.want(vec![spec.clone()]).await;
    let first = runs(&supervisor, &spec).await;
    run_lock::holder(&spec.lock).unwrap().unwrap().signal(Signal::KILL).unwrap();
    let restarted = |states: &trivet_manager::supervisor::ProcessStates| {
        states["a"].restarts == 1 && states["a"].phase == Phase::Running
    };
    assert!(supervisor.wait_until(SOON, restarted).await, "{:?}", supervisor.states());
    let second = runs(&supervisor, &spec).await;
    assert_ne!(first, second);
    assert_eq!(supervisor.states()["a"].last_failure.as_deref(), Some("it was killed by signal 9"));

    supervisor.want(vec![]).await;
    assert!(supervisor.wait_until(SOON, |states| states.is_empty()).await);
    assert!(run_lock::holder(&spec.lock).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_supervisor_adopts_what_runs() {
    let temp = tempfile::tempdir().unwrap();
    let spec = sleeper(temp.path(), "b");
    let first = Supervisor::spawn();
    first.want(vec![spec.clone()]).await;
    let pid = runs(&first, &spec).await;
    drop(first);

    let second = Supervisor::spawn();
    second.want(vec![spec.clone()]).await;
    assert_eq!(runs(&second, &spec).await, pid);
    assert_eq!(second.states()["b"].pid, Some(pid));
    run_lock::holder(&spec.lock).unwrap().unwrap().signal(Signal::KILL).unwrap();
    assert!(second.wait_until(SOON, |states| states["b"].restarts == 1).await);
    assert_ne!(runs(&second, &spec).await, pid);
    drop(second);
    assert_eq!(stop_holders(std::slice::from_ref(&spec.lock)).await.unwrap(), 1);
    assert_eq!(stop_holders(&[spec.lock]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_is_tried_again_with_its_reason() {
    let temp = tempfile::tempdir().unwrap();
    let missing = ProcessSpec { program: "/nonexistent".into(), ..sleeper(temp.path(), "c") };
    let complains = ProcessSpec {
        arguments: vec!["-c".into(), "echo 'error: no port' >&2; exit 3".into()],
        ..sleeper(temp.path(), "d")
    };
    let supervisor = Supervisor::spawn();
    supervisor.want(vec![missing, complains]).await;
    let failed = supervisor
        .wait_until(SOON, |states| {
            ["c", "d"].iter().all(|name| states.get(*name).is_some_and(|state| state.last_failure.is_some()))
        })
        .await;
    assert!(failed, "{:?}", supervisor.states());
    let states = supervisor.states();
    let said = |name: &str| states[name].last_failure.clone().unwrap();
    assert!(said("c").starts_with("it cannot be started: No such file"), "{}", said("c"));
    assert_eq!(said("d"), "it ended with exit code 3: no port");
}

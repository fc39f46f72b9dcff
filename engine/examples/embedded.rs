//! A hypervisor's use of the library: opens a volume, does I/O in the three styles there are, and
//! closes it. Exits non-zero when anything is not as it must be.
//!
//! ```text
//! cargo run --release --example embedded -- \
//!     --member POOLID=HOST:PORT [--member …] --volume UUID --blocks N
//! ```
//!
//! Members are replica servers (`trivet replica --dir DIR --listen HOST:PORT`); `?` for POOLID takes
//! whoever answers. The volume is made on them if it is not there. What its first 16 MiB hold is
//! overwritten.

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use trivet_engine::admin::Admin;
use trivet_engine::{IoReply, IoRequest, MemoryAuthority, OpenOptions, Volume};
use trivet_model::{
    BLOCK_SIZE_U64, Epoch, Generation, Member, MemberState, VolumeId, VolumeRecord, VolumeSettings,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: embedded --member POOLID=HOST:PORT [--member …] --volume UUID --blocks N";
/// Requests in flight.
const DEPTH: usize = 32;
/// Bytes of a request.
const REQUEST_BYTES: usize = 4096;
/// Requests of each style.
const REQUESTS: u64 = 256;

struct Arguments {
    /// Pool (empty for whoever answers) and address.
    members: Vec<(String, String)>,
    volume: VolumeId,
    blocks: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedded: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let arguments = parse()?;
    // Opening claims a generation above all that members have promised. A manager keeps it; without
    // one, members are asked.
    let record = prepare(&arguments)?;
    let authority = Arc::new(MemoryAuthority::new());
    authority.insert(record);
    let volume = Volume::open(OpenOptions {
        authority,
        volume: arguments.volume,
        owner: format!("example, process {}", std::process::id()),
        read_only: false,
        snapshot: None,
        key: None,
        patience: Some(Duration::from_secs(30)),
        spin: Duration::ZERO,
    })?;

    with_callbacks(&volume)?;
    with_futures(&volume)?;
    with_a_queue(&volume)?;

    let status = volume.status().ok_or("an open volume has a status")?;
    println!(
        "{} writes, {} reads, {} flushes; committed and stable up to {} and {}",
        status.counters.writes,
        status.counters.reads,
        status.counters.flushes,
        status.committed,
        status.stable,
    );
    volume.close(Duration::from_secs(10))?;
    println!("closed in good order");
    Ok(())
}

/// Writes with a callback each, which runs on the volume's thread and so only hands on.
fn with_callbacks(volume: &Volume) -> Outcome<()> {
    let (sender, outcomes) = channel();
    for index in 0..REQUESTS {
        let sender = sender.clone();
        let request = write(index, pattern(index, 1));
        volume.submit(request, move |outcome| {
            // The receiver is gone only when main has failed already.
            drop(sender.send((index, outcome)));
        });
    }
    drop(sender);
    let mut answered = 0;
    for (index, outcome) in outcomes {
        expect(outcome? == IoReply::Done, || format!("write {index} with a callback"))?;
        answered += 1;
    }
    expect(answered == REQUESTS, || format!("{answered} of {REQUESTS} callbacks came"))
}

/// Reads the same back as futures, flushes, and discards a part. An executor would await them.
fn with_futures(volume: &Volume) -> Outcome<()> {
    let futures: Vec<_> = (0..REQUESTS).map(|index| volume.request(read(index))).collect();
    for (index, future) in (0..).zip(futures) {
        let found = data(future.wait()?)?;
        expect(found == pattern(index, 1), || format!("request {index} reads back what was written"))?;
    }
    expect(volume.request(IoRequest::Flush).wait()? == IoReply::Done, || "a flush".to_owned())?;

    let (offset, length) = (8 * BLOCK_SIZE_U64, 16 * BLOCK_SIZE_U64);
    volume.request(IoRequest::Discard { offset, length }).wait()?;
    let zeroes = IoRequest::WriteZeroes {
        offset: 40 * BLOCK_SIZE_U64 + 512,
        length: 1024,
        force_unit_access: true,
        may_unmap: true,
    };
    volume.request(zeroes).wait()?;
    for index in 8..24 {
        let found = data(volume.request(read(index)).wait()?)?;
        expect(found.iter().all(|&byte| byte == 0), || format!("block {index} reads as zeros"))?;
    }
    let mut expected = pattern(40, 1);
    expected[512..1536].fill(0);
    let found = data(volume.request(read(40)).wait()?)?;
    expect(found == expected, || "sectors zeroed within a block".to_owned())?;

    let query = IoRequest::Allocation { offset, length };
    let holes = volume.request(query).wait()?;
    expect(holes == IoReply::Allocation(vec![(length, false)]), || format!("a hole, not {holes:?}"))
}

/// Overwrites and reads through a queue, as an event loop does that polls the queue's eventfd.
fn with_a_queue(volume: &Volume) -> Outcome<()> {
    let queue = volume.queue(DEPTH)?;
    queue.set_completion_fd_enabled(true);
    let mut completions = Vec::new();
    // First all writes, then all reads: user data below and above REQUESTS.
    for phase in 0..2 {
        let (mut submitted, mut finished) = (0, 0);
        while finished < REQUESTS {
            while submitted < REQUESTS {
                let request =
                    if phase == 0 { write(submitted, pattern(submitted, 2)) } else { read(submitted) };
                if queue.submit(phase * REQUESTS + submitted, request).is_err() {
                    break;
                }
                submitted += 1;
            }
            let mut fds = [PollFd::from_borrowed_fd(queue.completion_fd(), PollFlags::IN)];
            poll(&mut fds, None)?;
            queue.take(&mut completions, usize::MAX);
            for completion in completions.drain(..) {
                let index = completion.user_data % REQUESTS;
                let right = match completion.result? {
                    IoReply::Done => phase == 0,
                    reply => phase == 1 && data(reply)? == pattern(index, 2),
                };
                expect(right, || format!("request {index} through the queue"))?;
                finished += 1;
            }
        }
    }
    Ok(())
}

fn write(index: u64, data: Vec<u8>) -> IoRequest {
    let segments = vec![Bytes::from(data)];
    IoRequest::Write { offset: index * REQUEST_BYTES as u64, segments, force_unit_access: false }
}

fn read(index: u64) -> IoRequest {
    IoRequest::Read { offset: index * REQUEST_BYTES as u64, length: 4096 }
}

/// A request's contents, different for each and each round.
fn pattern(index: u64, round: u8) -> Vec<u8> {
    let mut data = vec![round; REQUEST_BYTES];
    data[..8].copy_from_slice(&index.to_le_bytes());
    data[4088..].copy_from_slice(&index.to_le_bytes());
    data
}

fn data(reply: IoReply) -> Outcome<Vec<u8>> {
    match reply {
        IoReply::Data(segments) => Ok(segments.concat()),
        other => Err(format!("a read answered {other:?}").into()),
    }
}

fn expect(right: bool, what: impl Fn() -> String) -> Outcome<()> {
    if right { Ok(()) } else { Err(format!("not as it must be: {}", what()).into()) }
}

/// Makes the volume on every member, and its record.
fn prepare(arguments: &Arguments) -> Outcome<VolumeRecord> {
    let mut generation = Generation::ZERO;
    let mut members = Vec::new();
    for (pool, address) in &arguments.members {
        let mut admin = Admin::connect(address)?;
        if !pool.is_empty() && admin.pool() != pool.parse()? {
            return Err(format!("pool {} answers at {address}", admin.pool()).into());
        }
        admin.create_volume(arguments.volume, arguments.blocks, false)?;
        for report in admin.pool_status()?.volumes {
            if report.volume == arguments.volume {
                generation = generation.max(report.generation);
            }
        }
        let (replica, address) = (admin.pool(), address.clone());
        members.push(Member { replica, address, state: MemberState::InSync });
    }
    Ok(VolumeRecord {
        id: arguments.volume,
        name: "embedded".to_owned(),
        blocks: arguments.blocks,
        generation,
        owner: String::new(),
        epoch: Epoch(1),
        wait_owed: false,
        members,
        snapshots: Vec::new(),
        lineage: Vec::new(),
        sharing: trivet_model::Sharing::Nothing,
        is_image: false,
        settings: VolumeSettings::default(),
        copies: 0,
        key: None,
        next_key: None,
        older_keys: Vec::new(),
        reverting: None,
        import: None,
    })
}

fn parse() -> Outcome<Arguments> {
    let (mut members, mut volume, mut blocks) = (Vec::new(), None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        match name.as_str() {
            "--member" => {
                let (pool, address) = value.split_once('=').ok_or(USAGE)?;
                members.push((pool.trim_start_matches('?').to_owned(), address.to_owned()));
            }
            "--volume" => volume = Some(value.parse()?),
            "--blocks" => blocks = Some(value.parse()?),
            _ => return Err(USAGE.into()),
        }
    }
    let arguments = Arguments { members, volume: volume.ok_or(USAGE)?, blocks: blocks.ok_or(USAGE)? };
    if arguments.members.is_empty() || arguments.blocks < REQUESTS {
        return Err(format!("{USAGE}\nat least one member, and at least {REQUESTS} blocks").into());
    }
    Ok(arguments)
}

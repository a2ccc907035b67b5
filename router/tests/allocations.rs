//! What a read of one key costs the router's core in allocations, from the request to the answer: all
//! requests of a node pass through it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use flotilla_proto::v1;
use flotilla_router::core::{Call, CallOutcome, Keyspaces, Step, Time};
use v1::request::Body;
use v1::response::Body as Answer;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system's; the counter is a plain cell of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn routes() -> Keyspaces {
    let descriptor = v1::RangeDescriptor {
        range_id: 2,
        keyspace_id: 1,
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: (1..=3).map(|node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 }).collect(),
        ..Default::default()
    };
    let status = v1::RangeStatus { descriptor: Some(descriptor), leader_node_id: 1, term: 1, ..Default::default() };
    let mut keyspaces = Keyspaces::new(None);
    keyspaces
        .merge_all(&v1::ListRangesResponse { ranges: vec![status], ..Default::default() })
        .expect("of one cluster");
    keyspaces
}

#[test]
fn a_get_of_the_default_keyspace_takes_few_allocations() {
    let mut keyspaces = routes();
    let header = Some(v1::RequestHeader::default());
    let body = Body::Get(v1::GetRequest { header, key: "key".into() });
    let record = Some(v1::Record { value: "value".into(), version: 1, ..Default::default() });
    let answer = Answer::Get(v1::GetResponse { header: Some(v1::ResponseHeader::default()), record });
    let before = COUNT.with(Cell::get);

    let keyspace = keyspaces.find("").expect("there is always the default one");
    let mut call = Call::new(body, Time::ZERO, Duration::from_secs(5));
    let Step::Send { request, .. } = call.next(Time::ZERO, keyspaces.routes(keyspace), 7) else {
        panic!("the route is known")
    };
    let response = v1::Response { id: request.id, body: Some(answer) };
    let outcome = CallOutcome::Response(response);
    call.on_outcome(Time::ZERO, keyspaces.routes_mut(keyspace), 7, request.id, outcome);
    let Step::Done(Ok(Answer::Get(answer))) = call.next(Time::ZERO, keyspaces.routes(keyspace), 7) else {
        panic!("it is answered")
    };

    let count = COUNT.with(Cell::get) - before;
    assert!(answer.record.is_some());
    // The keys, their results, the parts' items, the waiting parts, the flights.
    assert!(count <= 5, "{count} allocations");
}

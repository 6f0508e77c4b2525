//! An event that takes the whole pod down (D-B7).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::{App, Event, Say, World};

#[test]
fn f_5_d_b7_the_event_that_kills_the_whole_pod_ends_as_app_crash_and_its_neighbours_are_answered() {
    let deaths = Arc::new(AtomicU32::new(0));
    let wanted = Arc::clone(&deaths);
    let app = App::saying(move |asked| match asked.text().as_str() {
        "deadly" => {
            wanted.fetch_add(1, Ordering::SeqCst);
            Say::crash()
        }
        text => Say::value(text),
    });
    let mut world = World::embedded()
        .partitions(2)
        .short_sessions()
        .app(app)
        .start();
    let text = |n: usize| {
        if n == 40 {
            "deadly".to_owned()
        } else {
            n.to_string()
        }
    };
    world.send((0..80).map(|n| Event::of(format!("key-{}", n % 20), text(n))));
    // Whoever asks the app about it dies with the app, at once.
    let mut killed = 0;
    wait_until("the dead letter", || {
        if deaths.load(Ordering::SeqCst) > killed {
            killed = deaths.load(Ordering::SeqCst);
            world.input().kill_and_restart();
        }
        !world.dead_letters().is_empty()
    });
    let verdict = world.assert_nothing_lost();
    assert_eq!(verdict.dead_lettered, 1, "{verdict:?}");
    let letter = &world.dead_letters()[0];
    assert_eq!(letter.text(), "deadly");
    for (header, expected) in [
        ("millrace-dlq-reason", "app_crash"),
        ("millrace-dlq-error-code", "POD_CRASH"),
    ] {
        assert_eq!(letter.header(header).as_deref(), Some(expected), "{header}");
    }
    assert!(
        killed <= 6,
        "the pod was killed {killed} times by one event"
    );
}

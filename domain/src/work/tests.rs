//! Rules as tables.

use cqrs_es::test::TestFramework;
use uuid::Uuid;

use super::*;

const MAKER: UserId = UserId(Uuid::from_u128(1));
const OTHER: UserId = UserId(Uuid::from_u128(2));
const JOB: JobId = JobId(Uuid::from_u128(3));

fn note(text: &str) -> Note {
    text.to_owned().try_into().unwrap()
}

fn publish(creator: UserId, job: Option<JobId>, title: &str, visibility: Visibility) -> Command {
    Command::Publish { creator, job, title: note(title).into(), visibility }
}

fn published(job: Option<JobId>, title: &str, visibility: Visibility) -> Event {
    Event::Published { creator: MAKER, job, title: note(title), words: None, visibility }
}

#[track_caller]
fn check<const GIVEN: usize>(given: [Event; GIVEN], command: Command, expected: Result<Vec<Event>, Refusal>) {
    let result = TestFramework::<Work>::with(()).given(given.to_vec()).when(command);
    match expected {
        Ok(events) => result.then_expect_events(events),
        Err(refusal) => result.then_expect_error(refusal),
    }
}

#[test]
fn a_work_is_shown_and_no_longer_shown_by_its_maker_only() {
    use Visibility::{Public, Unlisted};
    let shown = || published(Some(JOB), "Moon", Public);
    let again = || publish(MAKER, Some(JOB), "Moon", Public);
    let unpublish = |creator| Command::Unpublish { creator };
    check([], again(), Ok(vec![shown()]));
    check([], publish(MAKER, None, "Old", Unlisted), Ok(vec![published(None, "Old", Unlisted)]));
    check([shown()], again(), Ok(vec![]));
    check([shown()], publish(MAKER, Some(JOB), "Sun", Public), Ok(vec![published(Some(JOB), "Sun", Public)]));
    check([shown()], publish(MAKER, Some(JOB), "Moon", Unlisted), Ok(vec![published(Some(JOB), "Moon", Unlisted)]));
    check([shown()], publish(OTHER, Some(JOB), "Moon", Public), Err(Refusal::Mismatch));
    check([shown()], publish(MAKER, None, "Moon", Public), Err(Refusal::Mismatch));

    check([], unpublish(MAKER), Err(Refusal::NotPublished));
    check([shown()], unpublish(OTHER), Err(Refusal::NotPublished));
    check([shown()], unpublish(MAKER), Ok(vec![Event::Unpublished {}]));
    check([shown(), Event::Unpublished {}], unpublish(MAKER), Ok(vec![]));
    check([shown(), Event::Unpublished {}], again(), Ok(vec![shown()]));
    check([shown(), Event::Unpublished {}], publish(OTHER, Some(JOB), "Moon", Public), Err(Refusal::Mismatch));
}

/// Events are kept for ever: these are read in every version to come.
#[test]
fn events_keep_their_json() {
    let (maker, job) = ("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000003");
    let table = [
        (
            published(Some(JOB), "Moon", Visibility::Public),
            format!(r#"{{"published":{{"creator":"{maker}","job":"{job}","title":"Moon","visibility":"public"}}}}"#),
        ),
        (
            published(None, "Moon", Visibility::Unlisted),
            format!(r#"{{"published":{{"creator":"{maker}","title":"Moon","visibility":"unlisted"}}}}"#),
        ),
        (Event::Unpublished {}, r#"{"unpublished":{}}"#.to_owned()),
    ];
    for (event, json) in table {
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}
